"""What the tests share with pytest: the fixture `backend`, and the golden files."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from conditions import BACKENDS, DEVICE, ISAS
from torch.overrides import TorchFunctionMode

import csc_kernels as csc
from csc_kernels import dictionary, native

GOLDEN = Path(__file__).resolve().parent / "golden"

# Of these, `make prove` runs every case.
EMULATED = (
    "test_triton",
    "test_triton_memory",
    "test_triton_traffic",
    "test_cuda",
    "test_cuda_traffic",
    "test_cudnn",
)

# Scripts: --doctest-modules would import them, and some set up their process when they are.
collect_ignore_glob = ["[!t]*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", type=Path, help="test every .npz of DIR too")
    parser.addoption("--whole", action="store_true", help="every case of the GPU kernels' tests, which takes long")


def installed_kernels() -> Path | None:
    """The library of an installed csc_kernels that another one without a library hides."""
    try:
        library = Path(str(distribution("csc_kernels").locate_file("csc_kernels/_native.abi3.so")))
    except PackageNotFoundError:
        return None
    hides = not (Path(csc.__file__).parent / library.name).exists()
    return library if hides and library.exists() else None


def pytest_configure(config: pytest.Config) -> None:
    # The problems are small: on a busy machine threads that wait for each other take 30 times as long.
    torch.set_num_threads(1)
    hidden = installed_kernels()
    if hidden is not None:
        raise pytest.UsageError(
            f"{Path(csc.__file__).parent} has no compiled kernels and stands before the installed {hidden.parent}: "
            "call pytest instead of python -m pytest, or install with pip install -e"
        )
    given = config.getoption("--golden")
    if given is not None and not any(given.glob("*.npz")):
        raise pytest.UsageError(f"--golden {given}: no .npz files there")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`golden_file`: every .npz of tests/golden, and of --golden DIR."""
    if "golden_file" in metafunc.fixturenames:
        folders = dict.fromkeys([GOLDEN, (metafunc.config.getoption("--golden") or GOLDEN).resolve()])
        files = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
        if not files:
            raise pytest.UsageError(f"{GOLDEN} has no .npz: without them these tests would be skipped")
        metafunc.parametrize("golden_file", files, ids=[file.stem for file in files])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU and --whole, a sixth of the cases of tests that emulate GPU kernels.

    Every value of a parameter that has few is met, and what is asked for by name is run.
    """
    named = any("::" in argument for argument in config.args) or config.getoption("lf", False)
    if config.getoption("--whole") or DEVICE != "cpu" or named:
        return
    cases: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        emulated = item.path.stem in EMULATED and isinstance(item, pytest.Function)
        if emulated and "golden_file" not in item.fixturenames:
            cases[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for test in cases.values():
        if len(test) >= 6:
            left_out.update(set(test) - sample(test))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def sample(test: list[pytest.Function]) -> set[pytest.Function]:
    """A sixth of the cases by their names, and the first with each value of a parameter of at most 4 values."""
    first: dict[str, dict[str, pytest.Function]] = defaultdict(dict)
    for item in test:
        for name, value in item.callspec.params.items():
            first[name].setdefault(str(value), item)
    few = {item for values in first.values() if len(values) <= 4 for item in values.values()}
    return few | {item for item in test if zlib.crc32(item.nodeid.encode()) % 6 == 0}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of one available backend, forced for the length of the test."""
    with csc.use_backend(request.param):
        yield request.param


@pytest.fixture(params=ISAS)
def every_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the native kernels that runs here, forced for the length of the test."""
    with native.use_isa(request.param):
        yield request.param


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether there are minutes for the test."""
    return request.config.getoption("--whole")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Also after a test that has asked for more."""
    yield
    torch.set_num_threads(1)


class DrawnOnTheCpu(TorchFunctionMode):
    """Random tensors of a CPU's generator are moved to the device of the tests: the same numbers everywhere."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not isinstance(kwargs.get("generator"), torch.Generator):
            return function(*args, **kwargs)
        return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE)


@pytest.fixture(autouse=True)
def on_the_device_of_the_tests() -> Iterator[None]:
    """Tensors that a test creates without saying where are on the device that it is run for."""
    if DEVICE == "cpu":
        yield
        return
    with torch.device(DEVICE), DrawnOnTheCpu():
        yield


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def refreshes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a layer computes a step size."""
    calls: list[str] = []
    compute = dictionary.lipschitz

    def spy(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append("lipschitz")
        return compute(*args, **kwargs)

    monkeypatch.setattr(dictionary, "lipschitz", spy)
    return calls
