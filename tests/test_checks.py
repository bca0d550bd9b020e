"""Bad input: every function, backend and layer answers with what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import csc_kernels as csc
from csc_kernels import CSCConv2d

X, D, Z = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3), torch.ones(2, 4, 8, 8)
NAN, INF = math.nan, math.inf


def fista(x: Any = X, d: Any = D, lmbda: Any = 0.1, t: Any = 0.01, n_iter: Any = 2, **options: Any) -> Tensor:
    return csc.fista(x, d, lmbda, t, n_iter, **{"padding": 1, **options})


def fista_step(x: Any = X, z: Any = Z, d: Any = D, lmbda: Any = 0.1, t: Any = 0.01, **options: Any) -> Any:
    return csc.fista_step(x, z, d, lmbda, t, **{"padding": 1, **options})


def residual(x: Any = X, z: Any = Z, d: Any = D, **options: Any) -> Tensor:
    return csc.residual(x, z, d, **{"padding": 1, **options})


def lipschitz(d: Any = D, **options: Any) -> Tensor:
    return csc.lipschitz(d, **{"padding": 1, "input_size": (8, 8), **options})


def make(*arguments: Any, **options: Any) -> CSCConv2d:
    return CSCConv2d(*(arguments or (3, 4, 3)), **{"padding": 1, **options})


def call(x: Any = X, layer: CSCConv2d | None = None, **changes: Any) -> Tensor:
    layer = layer or make()
    for name, value in changes.items():
        setattr(layer, name, value)
    return layer(x)


def reconstruct(z: Any = Z, *size: Any) -> Tensor:
    return make().reconstruct(z, *size)


def set_lmbda(value: Any) -> int:
    return csc.set_lmbda(make(), value)


def given(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: function(*arguments, **options)


# What is called, the error, and what its message tells: what was given, and what was expected.
Row = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]
ROWS: dict[str, Row] = {}

for function in (fista, fista_step, residual):
    name = function.__name__
    ROWS |= {
        f"{name} channels": (given(function, X[:, :2]), ValueError, ("3 input channels", "x has 2")),
        f"{name} two dimensions": (given(function, X[0, 0]), ValueError, ("x must have 3 or 4", "(8, 8)")),
        f"{name} five dimensions": (given(function, X[None]), ValueError, ("x must have 3 or 4", "(1, 2, 3")),
        f"{name} list": (given(function, [1.0]), TypeError, ("x must be a torch.Tensor", "list")),
        f"{name} integers": (given(function, X.int()), TypeError, ("x must be a floating", "torch.int32")),
        f"{name} sparse": (given(function, X.to_sparse()), TypeError, ("x must be a dense", "sparse")),
        f"{name} dtypes": (given(function, X.double()), TypeError, ("dictionary is torch.float32", "float64")),
        f"{name} dictionary list": (given(function, d=[1]), TypeError, ("dictionary must be", "list")),
        f"{name} dictionary of 3": (given(function, d=D[0]), ValueError, ("dictionary must have 4", "(3, 3, 3)")),
        f"{name} empty dictionary": (given(function, d=D[:0]), ValueError, ("dictionary", "empty", "(0, 3")),
        f"{name} devices": (given(function, d=D.to("meta")), ValueError, ("dictionary is on meta", "x is on cpu")),
        f"{name} kernel": (given(function, d=torch.ones(4, 3, 11, 3)), ValueError, ("(11, 3)", "(2, 3, 8, 8)")),
        f"{name} stride 0": (given(function, stride=0), ValueError, ("stride must be at least 1", "0")),
        f"{name} stride 2**70": (
            given(function, stride=2**70),
            ValueError,
            ("stride must be at most 16384", "11805"),
        ),
        f"{name} padding 2**31": (given(function, padding=2**31), ValueError, ("padding must be at most", "21474")),
        f"{name} stride 1.5": (given(function, stride=1.5), TypeError, ("stride must be an int", "1.5")),
        f"{name} three strides": (given(function, stride=(1, 1, 1)), TypeError, ("stride", "(1, 1, 1)")),
        f"{name} padding": (given(function, padding=-1), ValueError, ("padding must be at least 0", "-1")),
        f"{name} padding word": (given(function, padding="full"), ValueError, ("same", "valid", "full")),
        f"{name} same": (given(function, padding="same", stride=2), ValueError, ("same", "stride 1", "(2, 2)")),
        f"{name} mask": (given(function, mask=torch.ones(7, 8)), ValueError, ("mask of shape (7, 8)", "(2, 3")),
        f"{name} mask list": (given(function, mask=[1]), TypeError, ("mask must be a torch.Tensor", "list")),
        f"{name} mask integers": (given(function, mask=X.int()), TypeError, ("mask must be bool", "int32")),
        f"{name} mask sparse": (given(function, mask=X.to_sparse()), TypeError, ("mask must be a dense", "sparse")),
        f"{name} 8 bits": (
            given(function, X.to(torch.float8_e4m3fn)),
            TypeError,
            ("x must", "16, 32", "float8"),
        ),
        f"{name} mask dtype": (given(function, mask=X.double()), TypeError, ("mask is torch.float64", "float32")),
        f"{name} mask device": (given(function, mask=X.bool().to("meta")), ValueError, ("mask is on meta", "cpu")),
    }
for function in (fista_step, residual):
    name = function.__name__
    ROWS |= {
        f"{name} code": (given(function, z=Z[:1]), ValueError, ("z has shape (1, 4, 8, 8)", "(2, 4, 8, 8)")),
        f"{name} code list": (given(function, z=[1]), TypeError, ("z must be a torch.Tensor", "list")),
        f"{name} code dtype": (given(function, z=Z.double()), TypeError, ("z is torch.float64", "float32")),
        f"{name} code rank": (given(function, z=Z[0]), ValueError, ("z must have 4 dimensions", "(4, 8, 8)")),
    }
for function in (fista, fista_step):
    for what in ("lmbda", "mu"):
        name = f"{function.__name__} {what}"
        for value in (-1, NAN, INF, torch.tensor(-1.0), torch.full((1, 4, 1, 1), NAN), torch.tensor(INF)):
            shown = "nan" if "nan" in str(value) else str(value).strip("tensor().")
            message = (f"{what} must be finite and at least 0", shown)
            ROWS[f"{name} {value}"] = (given(function, **{what: value}), ValueError, message)
        ROWS |= {
            f"{name} list": (given(function, **{what: [0.1]}), TypeError, (f"{what} must be a number", "list")),
            f"{name} True": (given(function, **{what: True}), TypeError, (f"{what} must be a number", "bool")),
            f"{name} numpy": (given(function, **{what: numpy.float32(1)}), TypeError, ("int or float", "numpy.f")),
            f"{name} 10**400": (given(function, **{what: 10**400}), ValueError, (f"{what} must be finite", "int")),
            f"{name} sparse": (
                given(function, **{what: torch.ones(4, 1, 1).to_sparse()}), TypeError, (f"{what} must be a dense",),
            ),
            f"{name} integer": (given(function, **{what: torch.tensor(1)}), TypeError, (what, "int64")),
            f"{name} shape": (
                given(function, **{what: torch.ones(5, 1, 1)}), ValueError,
                (f"{what} of shape (5, 1, 1)", "(2, 4, 8, 8)"),
            ),
            f"{name} device": (
                given(function, **{what: torch.ones(4, 1, 1, device="meta")}), ValueError,
                (f"{what} is on meta", "cpu"),
            ),
        }  # fmt: skip
    name = f"{function.__name__} step_size"
    for value in (0, -1.0, NAN, torch.tensor(0.0), torch.tensor([NAN])):
        ROWS[f"{name} {value}"] = (given(function, t=value), ValueError, ("step_size", "greater than 0", "got"))
    ROWS |= {
        f"{name} two": (given(function, t=torch.ones(2)), ValueError, ("step_size must have one element", "(2,)")),
        f"{name} list": (given(function, t=[1.0]), TypeError, ("step_size must be a number", "list")),
        f"{name} integer": (given(function, t=torch.tensor(1)), TypeError, ("step_size", "int64")),
        f"{function.__name__} momentum": (given(function, momentum="no"), ValueError, ("fista", "sdnet", "'no'")),
        f"{function.__name__} momentums": (given(function, momentum=["no"]), ValueError, ("fista", "['no']")),
        f"{function.__name__} momentum array": (
            given(function, momentum=numpy.array(["fista", "no"])),
            ValueError,
            ("momentum must be one of",),
        ),
        f"{function.__name__} nonneg": (given(function, nonneg="no"), TypeError, ("nonneg must be a bool", "'no'")),
        f"{function.__name__} nonneg None": (given(function, nonneg=None), TypeError, ("nonneg", "None")),
    }
for value, error, told in (
    (0, ValueError, "at least 1, got 0"),
    (-2, ValueError, "at least 1, got -2"),
    (2**70, ValueError, f"at most 2147483647, got {2**70}"),
    (1.5, TypeError, "an int, got 1.5"),
    (True, TypeError, "an int, got True"),
    (torch.tensor(2), TypeError, "an int, got tensor(2)"),
):
    ROWS[f"fista n_iter {value}"] = (given(fista, n_iter=value), error, ("n_iter must be", told))
    ROWS[f"layer n_iter {value}"] = (given(make, n_iter=value), error, ("n_iter must be", told))
    ROWS[f"layer.n_iter {value}"] = (given(call, n_iter=value), error, ("n_iter must be", told))
    ROWS[f"lipschitz max_iter {value}"] = (given(lipschitz, max_iter=value), error, ("max_iter must be", told))
ROWS |= {
    "z0": (given(fista, z0=Z[:, :2]), ValueError, ("z0 has shape (2, 2, 8, 8)", "(2, 4, 8, 8)")),
    "z0 list": (given(fista, z0=[1]), TypeError, ("z0 must be a torch.Tensor", "list")),
    "z0 dtype": (given(fista, z0=Z.double()), TypeError, ("z0 is torch.float64", "x is torch.float32")),
    "z0 device": (given(fista, z0=Z.to("meta")), ValueError, ("z0 is on meta", "x is on cpu")),
    "y": (given(fista_step, y=Z[:1]), ValueError, ("y has shape (1, 4, 8, 8)", "(2, 4, 8, 8)")),
    "y of none": (given(fista_step, y=Z, momentum="none"), ValueError, ("none", "neither y nor beta")),
    "beta": (given(fista_step, beta=-0.1), ValueError, ("beta must be finite and at least 0", "-0.1")),
    "beta tensor": (given(fista_step, beta=torch.ones(())), TypeError, ("beta must be a number", "Tensor")),
    "unsquared lmbda": (
        given(fista, lmbda=torch.tensor(-1.0), square_noise=False), ValueError, ("lmbda", "at least 0, got -1.0"),
    ),
    "unsquared step_size": (
        given(fista, t=torch.tensor(0.0), square_noise=False), ValueError, ("step_size", "than 0, got 0.0"),
    ),
    "unsquared lmbda shape": (
        given(fista, lmbda=torch.ones(5, 1, 1), square_noise=False, n_iter=1), ValueError, ("(5, 1, 1)",),
    ),
    "lipschitz list": (given(lipschitz, [1]), TypeError, ("dictionary must be a torch.Tensor", "list")),
    "lipschitz rank": (given(lipschitz, D[0]), ValueError, ("dictionary must have 4", "(3, 3, 3)")),
    "lipschitz integers": (given(lipschitz, D.int()), TypeError, ("dictionary must be a floating", "int32")),
    "lipschitz stride 16385": (given(lipschitz, stride=16385), ValueError, ("at most 16384", "16385")),
    "lipschitz stride": (given(lipschitz, stride=0), ValueError, ("stride must be at least 1", "0")),
    "lipschitz padding": (given(lipschitz, padding=-1), ValueError, ("padding must be at least 0", "-1")),
    "lipschitz method": (given(lipschitz, method="svd"), ValueError, ("power", "bound", "svd")),
    "lipschitz no size": (given(lipschitz, input_size=None), ValueError, ("input_size", "power")),
    "lipschitz small": (given(lipschitz, input_size=(8, 1), padding=0), ValueError, ("(3, 3)", "(8, 1)")),
    "lipschitz size 0": (given(lipschitz, input_size=0), ValueError, ("input_size must be at least 1", "0")),
    "lipschitz negative": (given(lipschitz, input_size=(8, -8), padding=9), ValueError, ("input_size", "-8")),
    "lipschitz floats": (given(lipschitz, input_size=(8.0, 8.0)), TypeError, ("input_size", "(8.0, 8.0)")),
    "lipschitz size 2**63": (given(lipschitz, input_size=2**63), ValueError, ("input_size must be at most",)),
    "lipschitz True": (given(lipschitz, input_size=True), TypeError, ("input_size", "True")),
    "lipschitz str": (given(lipschitz, input_size="ab"), TypeError, ("input_size", "'ab'")),
    "lipschitz one": (given(lipschitz, input_size=(8,)), TypeError, ("input_size", "(8,)")),
    "lipschitz tol": (given(lipschitz, tol=-1.0), ValueError, ("tol must be finite and at least 0", "-1.0")),
    "lipschitz tol nan": (given(lipschitz, tol=NAN), ValueError, ("tol must be finite and at least 0", "nan")),
    "lipschitz tol str": (given(lipschitz, tol="a"), TypeError, ("tol must be a number", "str")),
    "layer channels": (given(call, X[:, :2]), ValueError, ("3 input channels", "x has 2", "(4, 3, 3, 3)")),
    "layer rank": (given(call, X[0, 0]), ValueError, ("x must have 3 or 4", "(8, 8)")),
    "layer list": (given(call, [1]), TypeError, ("x must be a torch.Tensor", "list")),
    "layer integers": (given(call, X.int()), TypeError, ("x must be a floating point tensor", "int32")),
    "layer dtype": (given(call, X.double()), TypeError, ("x is torch.float64", "the weight is torch.float32")),
    "layer sparse mask": (given(make(), X, X.to_sparse()), TypeError, ("mask must be a dense", "sparse")),
    "layer huber tensor": (given(make, huber=torch.ones(())), TypeError, ("huber must be a number (int", "Tensor")),
    "layer.normalize": (given(call, normalize="spheer"), ValueError, ("normalize must be", "sphere", "spheer")),
    "layer.step": (given(call, step="bond"), ValueError, ("step must be one of", "power", "bond")),
    "layer device": (given(call, X.to("meta")), ValueError, ("cpu", "x is on meta")),
    "layer kernel": (given(call, X, make(3, 4, 11, padding=0)), ValueError, ("(11, 11)", "(2, 3, 8, 8)")),
    "layer.momentum": (given(call, momentum="no"), ValueError, ("fista", "sdnet", "'no'")),
    "layer.lmbda shape": (given(call, lmbda=torch.ones(5, 1, 1)), ValueError, ("lmbda of shape (5, 1, 1)",)),
    "layer in_channels": (given(make, 0, 4, 3), ValueError, ("in_channels must be at least 1", "0")),
    "layer out_channels": (given(make, 3, [4], 3), TypeError, ("out_channels must be an int", "[4]")),
    "layer kernel 0": (given(make, 3, 4, 0), ValueError, ("kernel_size must be at least 1", "0")),
    "layer stride 2**40": (given(make, 3, 4, 3, 2**40), ValueError, ("stride must be at most 16384", "10995")),
    "layer stride": (given(make, 3, 4, 3, 0), ValueError, ("stride must be at least 1", "0")),
    "layer padding": (given(make, 3, 4, 3, padding=-1), ValueError, ("padding must be at least 0", "-1")),
    "layer dilation": (given(make, 3, 4, 3, dilation=2), ValueError, ("dilation=2", "only 1")),
    "layer dilations": (given(make, 3, 4, 3, dilation=numpy.ones(2)), ValueError, ("dilation=array", "only 1")),
    "layer stride later": (given(setattr, make(), "stride", 0), ValueError, ("stride", "0")),
    "layer stride of same": (given(setattr, make(3, 4, 3, padding="same"), "stride", 2), ValueError, ("same",)),
    "layer groups": (given(make, 4, 4, 3, groups=2), ValueError, ("groups=2", "only 1")),
    "layer bias": (given(make, 3, 4, 3, bias=True), ValueError, ("bias=True", "only False")),
    "layer padding_mode": (given(make, padding_mode="reflect"), ValueError, ("reflect", "zeros")),
    "layer normalize": (given(make, normalize="no"), ValueError, ("sphere", "projection", "'no'")),
    "layer step": (given(make, step="no"), ValueError, ("bound", "power", "'no'")),
    "layer nonneg": (given(make, nonneg=1), TypeError, ("nonneg must be a bool", "1")),
    "reconstruct atoms": (given(reconstruct, Z[:, :3]), ValueError, ("4 atoms", "(2, 3, 8, 8)")),
    "reconstruct dtype": (given(reconstruct, Z.double()), TypeError, ("z is torch.float64", "the weight is")),
    "reconstruct device": (given(reconstruct, Z.to("meta")), ValueError, ("z is on meta", "the weight is on cpu")),
    "reconstruct no rows": (given(reconstruct, Z[:, :, :0]), ValueError, ("z must have rows", "(2, 4, 0, 8)")),
    "reconstruct size": (given(reconstruct, Z, (99, 8)), ValueError, ("(2, 4, 8, 8)", "(99, 8)")),
    "reconstruct three": (given(reconstruct, Z, (8, 8, 8)), TypeError, ("size must be", "(8, 8, 8)")),
    "reconstruct floats": (given(reconstruct, Z, (8.0, 8.0)), TypeError, ("size must be", "(8.0, 8.0)")),
    "set_lmbda no module": (given(csc.set_lmbda, 3, 0.1), TypeError, ("torch.nn.Module", "int")),
    "set_lmbda no layer": (given(csc.set_lmbda, nn.ReLU(), 0.1), ValueError, ("ReLU", "CSCConv2d")),
}  # fmt: skip
for where, setter in {
    "layer(lmbda)": lambda v: make(lmbda=v),
    "layer(mu)": lambda v: make(mu=v),
    "layer.lmbda": lambda v: setattr(make(), "lmbda", v),
    "layer.mu": lambda v: setattr(make(), "mu", v),
    "set_lmbda": set_lmbda,
}.items():
    for value in (-1, NAN, torch.tensor(-1.0), torch.full((4, 1, 1), NAN), nn.Parameter(torch.tensor(-1.0))):
        ROWS[f"{where} {value}"] = (given(setter, value), ValueError, ("must be finite and at least 0", "got"))
    for value in ([0.1], None, "a", True, torch.tensor(1)):
        ROWS[f"{where} {value!r}"] = (given(setter, value), TypeError, ("must be a", "got"))


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_refused_by_name(backend: str, row: str) -> None:
    run, error, told = ROWS[row]
    with pytest.raises(error) as raised:
        run()
    assert type(raised.value) is error
    for part in told:
        assert part in str(raised.value)


# The ops themselves: what no public function lets through would be read from memory that is not theirs.

L, M, T = torch.tensor(0.1), torch.tensor(0.0), torch.tensor(0.01)
ONE, SIDES = [1, 1], [1, 1, 1, 1]
WIDE_X, WIDE_D, WIDE_Z = torch.ones(2, 16, 8, 8), torch.ones(32, 16, 3, 3), torch.ones(2, 32, 8, 8)


def raw_fista(x=X, d=D, lmbda=L, mu=M, t=T, z0=None, mask=None, n=2, stride=ONE, pads=SIDES, momentum="fista"):
    return torch.ops.csc.fista(x, d, lmbda, mu, t, z0, mask, n, stride, pads, True, momentum, False)


def raw_step(x=X, z=Z, y=Z, d=D, lmbda=L, mu=M, t=T, stride=ONE, pads=SIDES, mask=None, beta=0.3):
    return torch.ops.csc.fista_step(x, z, y, d, lmbda, mu, t, beta, stride, pads, True, False, mask)


def raw_residual(x=X, z=Z, d=D, stride=ONE, pads=SIDES, mask=None):
    return torch.ops.csc.residual(x, z, d, stride, pads, mask)


def raw_backward(grad=Z, z=Z, codes=Z, residuals=X, x=X, d=D, needs=(True, True, *[False] * 5)):
    return torch.ops.csc.fista_backward(
        grad, x, d, L, M, T, None, None, z, codes, residuals, 2, ONE, SIDES, True, "fista", needs
    )


def raw_step_backward(grad=Z, z=Z):
    needs = [True] * 4 + [False] * 4
    return torch.ops.csc.fista_step_backward(grad, Z, z, X, Z, Z, D, L, M, T, 0.3, ONE, SIDES, False, None, needs)


def raw_residual_backward(grad=X, z=Z):
    return torch.ops.csc.residual_backward(grad, X, z, D, ONE, SIDES, None, [True] * 3 + [False])


RAW = {
    "fista channels": given(raw_fista, X[:, :2]),
    "fista integers": given(raw_fista, X.int(), D.int()),
    "fista three dimensions": given(raw_fista, X[0]),
    "fista dtypes": given(raw_fista, X, D.bfloat16()),
    "fista lmbda": given(raw_fista, lmbda=torch.ones(5, 1, 1)),
    "fista lmbda nan": given(raw_fista, lmbda=torch.tensor(NAN)),
    "fista two step sizes": given(raw_fista, t=torch.ones(2)),
    "fista z0": given(raw_fista, z0=Z[:1, :, :2]),
    "fista z0 dtype": given(raw_fista, z0=Z.double()),
    "fista mask": given(raw_fista, mask=torch.ones(9)),
    "fista no steps": given(raw_fista, n=0),
    "fista stride 0": given(raw_fista, stride=[0, 0]),
    "fista one stride": given(raw_fista, stride=[1]),
    "fista padding": given(raw_fista, pads=[-5] * 4),
    "fista momentum": given(raw_fista, momentum="no"),
    "fista wide channels": given(raw_fista, WIDE_X[:, :9], WIDE_D),
    "fista wide z0": given(raw_fista, WIDE_X, WIDE_D, z0=WIDE_Z[:1]),
    "fista_step z": given(raw_step, z=Z[:1, :, :2]),
    "fista_step y": given(raw_step, y=Z[:1, :, :2]),
    "fista_step beta": given(raw_step, beta=-1.0),
    "fista_step wide y": given(raw_step, WIDE_X, WIDE_Z, WIDE_Z[:1], WIDE_D),
    "residual z": given(raw_residual, z=Z[:1, :, :2]),
    "residual wide z": given(raw_residual, WIDE_X, WIDE_Z[:1], WIDE_D),
    "fista_backward grad": given(raw_backward, grad=Z[:1]),
    "fista_backward z": given(raw_backward, z=Z[:, :, :2]),
    "fista_backward codes": given(raw_backward, codes=Z[:, :, :2]),
    "fista_backward fewer codes": given(raw_backward, codes=Z[:1]),
    "fista_backward more codes": given(raw_backward, codes=torch.cat([Z, Z])),
    "fista_backward codes alone": given(raw_backward, residuals=X[:0]),
    "fista_backward residuals alone": given(raw_backward, codes=Z[:0]),
    "fista_backward no z0": given(raw_backward, needs=[False] * 5 + [True, False]),
    "fista_backward no mask": given(raw_backward, needs=[False] * 6 + [True]),
    "fista_step_backward grad": given(raw_step_backward, grad=Z[:1]),
    "fista_step_backward z_next": given(raw_step_backward, z=Z[:, :2]),
    "residual_backward grad": given(raw_residual_backward, grad=X[:1]),
    "lipschitz size": lambda: torch.ops.csc.lipschitz(D, ONE, SIDES, [8, -8], 1e-3, 5),
    "lipschitz max_iter": lambda: torch.ops.csc.lipschitz(D, ONE, SIDES, [8, 8], 1e-3, 0),
    "lipschitz stride": lambda: torch.ops.csc.lipschitz(D, [0, 0], SIDES, [8, 8], 1e-3, 5),
    "lipschitz_bound stride": lambda: torch.ops.csc.lipschitz_bound(D, [0, 0]),
    "lipschitz_bound rank": lambda: torch.ops.csc.lipschitz_bound(D[0], ONE),
}


@pytest.mark.parametrize("row", RAW)
def test_the_ops_check_for_themselves(backend: str, row: str) -> None:
    for right in (raw_fista, raw_step, raw_residual, raw_backward, raw_step_backward, raw_residual_backward):
        right()
    with pytest.raises((ValueError, TypeError)):
        RAW[row]()


def test_nothing_is_set_when_the_value_is_bad() -> None:
    model = nn.Sequential(make(lmbda=0.1), make(4, 4, 3, lmbda=0.2))
    for bad in (-1, torch.tensor(NAN), [0.1]):
        with pytest.raises((ValueError, TypeError)):
            csc.set_lmbda(model, bad)
    assert [layer.lmbda for layer in model] == [0.1, 0.2]


# Where the ops are bypassed: the same questions.


@pytest.mark.parametrize("transform", ("vmap", "grad"))
def test_bad_values_are_refused_inside_torch_func(transform: str) -> None:
    def loss(lmbda: Tensor) -> Tensor:
        return fista(lmbda=lmbda).sum()

    with pytest.raises(ValueError, match="lmbda must be finite and at least 0, got .*-1"):
        if transform == "vmap":
            torch.vmap(loss)(torch.tensor([0.1, -1.0]))
        else:
            torch.func.grad(loss)(torch.tensor(-1.0))


def test_bad_shapes_are_refused_inside_torch_func() -> None:
    with pytest.raises(ValueError, match="3 input channels, x has 2"):
        torch.vmap(fista)(torch.ones(5, 2, 2, 8, 8))
    with pytest.raises(ValueError, match="z has shape"):
        torch.vmap(residual, (0, None))(torch.ones(5, 2, 3, 8, 8), Z[:1])


def test_float64_is_refused_under_autocast() -> None:
    """Autocast leaves float64 as it is."""
    with torch.autocast("cpu", torch.bfloat16):
        for run in (given(fista, X.double()), given(call, X.double()), given(residual, X, Z.double())):
            with pytest.raises(TypeError, match="float64"):
                run()


def test_the_compiler_shows_the_error() -> None:
    """Without fullgraph it is the ValueError itself; with it the compiler's own, which quotes it."""
    for run, x in ((fista, X[:, :2]), (make(), X[:, :2])):
        torch.compiler.reset()
        with pytest.raises(ValueError, match="3 input channels, x has 2"):
            torch.compile(run, backend="eager")(x)
        torch.compiler.reset()
        with pytest.raises(Exception, match="3 input channels, x has 2"):
            torch.compile(run, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize("shape", ((), (4, 1, 1), (1, 4, 1, 1), (4, 8, 8), (1, 1, 8, 8)))
def test_what_broadcasts_against_an_unbatched_code_is_taken(backend: str, shape: tuple[int, ...]) -> None:
    lmbda = torch.rand(shape)
    expected = fista(X[:1], lmbda=lmbda, mu=lmbda)[0]
    assert torch.equal(fista(X[0], lmbda=lmbda, mu=lmbda), expected)
    torch.testing.assert_close(make(lmbda=lmbda)(X[0]).shape, expected.shape)
