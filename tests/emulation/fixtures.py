"""Fixtures for the tests that run on the emulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import csc_kernels as csc

from .build import ROOT, build, compiler


@pytest.fixture(scope="session")
def emulated_process() -> Iterator:
    """The process of the session; its sources are compiled when one has changed."""
    if compiler() is None or csc.backends.unavailable("native") is not None:
        pytest.skip("the emulation needs g++ and the compiled library")
    from .device import Device

    device = Device(build(ROOT / "build" / "emulation"))
    yield device
    device.close()


@pytest.fixture(params=["cuda"])
def device(emulated_process, request: pytest.FixtureRequest) -> Iterator:
    """The backend "cuda", or the fixture's parameter, forced, on the emulated device in its usual state."""
    from .device import FULL, emulated

    for name, value in FULL.items():
        setattr(emulated_process, name, value)
    emulated_process.calls.clear()
    with emulated(emulated_process), csc.use_backend(request.param):
        yield emulated_process
