"""The layer against float64 files of the published implementation: tests/golden, and --golden DIR.

A file holds the inputs, the code, one output gradient and what it gives for x and the weight, and the two
losses: the summed squared residual of the code over n_dict, and lmbda |z|_1 + mu/2 |z|^2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditions import DEVICE, PRECISE
from torch import Tensor

import csc_kernels as csc

PRECISION = 1e-10  # float64
OUTPUTS = ("z", "grad_x", "grad_weight", "r_loss", "c_loss")
OPTIONS = ("stride", "padding", "lmbda", "mu", "n_iter", "nonneg", "square_noise", "n_dict")


def load(file: Path) -> dict[str, Any]:
    """Tensors, and plain numbers (pairs as lists)."""
    with np.load(file) as fields:
        tensors = ("x", "weight", "grad_z", *OUTPUTS)
        return {
            name: torch.from_numpy(np.asarray(fields[name])).to(DEVICE)
            if name in tensors
            else fields[name].tolist()
            for name in fields.files
        }


def solve(golden: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """What the file holds, from `csc.fista` and `csc.residual`."""
    x = golden["x"].to(dtype).requires_grad_()
    dictionary = golden["weight"].to(dtype).requires_grad_()
    lmbda, mu, n_dict = golden["lmbda"], golden["mu"], golden["n_dict"]
    repeated = x.repeat(1, n_dict, 1, 1)
    geometry = {"stride": golden["stride"], "padding": golden["padding"]}
    z = csc.fista(
        repeated,
        dictionary,
        lmbda,
        golden["step_size"],
        golden["n_iter"],
        mu=mu,
        nonneg=golden["nonneg"],
        momentum="sdnet",
        square_noise=golden["square_noise"],
        **geometry,
    )
    grad_x, grad_weight = torch.autograd.grad(z, (x, dictionary), golden["grad_z"].to(dtype))
    with torch.no_grad():
        r_loss = csc.residual(repeated, z, dictionary, **geometry).square().sum() / n_dict
        c_loss = lmbda * z.abs().sum() + mu / 2 * z.square().sum()
    return dict(zip(OUTPUTS, (z.detach(), grad_x, grad_weight, r_loss, c_loss)))


def assert_equal(name: str, value: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(value, golden, rtol=PRECISION, atol=PRECISION, msg=lambda text: f"{name}: {text}")


def error(value: Tensor, golden: Tensor) -> float:
    return (value.double() - golden).abs().max().item()


FLOAT64 = [case for case in PRECISE if case.values[1] is torch.float64]
FLOAT32 = [case for case in PRECISE if case.values[1] is torch.float32 and case.values[0] != "reference"]


@pytest.mark.parametrize("backend, dtype", FLOAT64, indirect=["backend"])
def test_equals_the_published_layer(golden_file: Path, backend: str, dtype: torch.dtype) -> None:
    golden = load(golden_file)
    for name, value in solve(golden, dtype).items():
        assert_equal(name, value, golden[name])


@pytest.mark.parametrize("backend, dtype", FLOAT32, indirect=["backend"])
def test_errs_at_most_twice_as_much_as_the_reference(golden_file: Path, backend: str, dtype: torch.dtype) -> None:
    golden = load(golden_file)
    found = solve(golden, dtype)
    with csc.use_backend("reference"):
        reference = solve(golden, dtype)
    for name in OUTPUTS:
        # Where the reference happens to be exact: a few units in the last place of the largest value.
        floor = 4 * torch.finfo(dtype).eps * golden[name].abs().max().item()
        limit = 2 * error(reference[name], golden[name]) + floor
        assert error(found[name], golden[name]) <= limit, name


def test_a_layer_with_the_published_weight_and_step_size_equals_the_published_layer(
    golden_file: Path,
) -> None:
    golden = load(golden_file)
    atoms, _, *kernel_size = golden["weight"].shape
    layer = csc.CSCConv2d(
        golden["x"].shape[1],
        atoms,
        tuple(kernel_size),
        dtype=torch.float64,
        normalize="projection",
        momentum="sdnet",
        **{name: golden[name] for name in OPTIONS},
    )
    step_size = torch.tensor(golden["step_size"], dtype=torch.float64)
    layer.load_state_dict({"weight": golden["weight"], "step_size": step_size})
    x = golden["x"].requires_grad_()
    z = layer(x)
    z.backward(golden["grad_z"])
    assert_equal("z", z.detach(), golden["z"])
    assert_equal("grad_x", x.grad, golden["grad_x"])
    assert_equal("grad_weight", layer.weight.grad, golden["grad_weight"])
