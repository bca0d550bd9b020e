"""Inference that chooses lmbda for each picture, without its label and without a clean copy.

lmbda = slope * f + intercept, held between the training lmbda and the largest of the grid, where f is

    residual   ||x - A z||^2 per number of the middle of the normalised picture, z the first layer's code at the
               training lmbda: the published robust inference's line, but at one probing lmbda, and per picture;
    noise      median |d| / 0.6745 over the finest diagonal differences d (Donoho & Johnstone 1994, Biometrika 81,
               section 3.1), an estimate of the deviation of noise that edges hardly move;
    deviation  mean |d| sqrt(pi / 2), the same of normal noise. Edges move it more, but it sees impulses, which are
               too few for a median, and it is differentiable and costs the least.

The lines are found on training pictures with synthetic noise (`calibrate`) and frozen.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from csc_kernels import CSCConv2d

from ..models import Classifier
from .corruptions import check_range
from .stem import stem_layers, stem_lmbda

METHODS = ("residual", "noise", "deviation")
# Of |N(0, 1)|, Donoho and Johnstone's constant.
MEDIAN_OF_NORMAL = 0.6745
MOST = 1.4


def residual(layer: CSCConv2d, x: Tensor, lmbda: float) -> Tensor:
    """Mean square of x - A z over each picture (N, C, H, W), the code z at one lmbda: (N,)."""
    before = layer.lmbda
    layer.lmbda = lmbda
    try:
        difference = x - layer.reconstruct(layer(x), tuple(x.shape[-2:]))
    finally:
        layer.lmbda = before
    return difference.square().mean((1, 2, 3))


def noise_deviation(pictures: Tensor) -> Tensor:
    """Estimate of the standard deviation of each picture's noise, (N, C, H, W) -> (N,).

    >>> noisy = 0.5 + 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> round(noise_deviation(noisy).item(), 2)
    0.1
    """
    return finest(pictures).median(1).values / MEDIAN_OF_NORMAL


def mean_deviation(pictures: Tensor) -> Tensor:
    """Estimate of the standard deviation of each picture's noise that rare impulses move too, (N, C, H, W) -> (N,).

    >>> noisy = 0.5 + 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> round(mean_deviation(noisy).item(), 2)
    0.1
    """
    return finest(pictures).mean(1) * (math.pi / 2) ** 0.5


def finest(pictures: Tensor) -> Tensor:
    """Magnitudes of the finest diagonal differences, (N, C, H, W) -> (N, C (H // 2) (W // 2))."""
    rows, columns = (size - size % 2 for size in pictures.shape[-2:])
    even = pictures[..., :rows, :columns]
    top, bottom = even[..., ::2, :], even[..., 1::2, :]
    # Of deviation sigma where the noise has it: half a sum of four.
    difference = (top[..., ::2] - top[..., 1::2] - bottom[..., ::2] + bottom[..., 1::2]) / 2
    return difference.abs().flatten(1)


def middle(pictures: Tensor) -> Tensor:
    """The middle half of the rows and columns: noise is the same everywhere, and a quarter costs a quarter."""
    rows, columns = pictures.shape[-2:]
    return pictures[..., rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]


class AdaptiveClassifier(Classifier, library_name="sdnet", tags=["sparse-coding"]):
    """A Classifier that chooses its stem's lmbda for each picture. `sdnet.adapt` makes one.

    Args:
        method: "residual", "noise" or "deviation"; the other arguments are Classifier's.

    Shapes:
        pictures (N, C, H, W) in [0, 1] -> logits (N, num_classes).

    The lines (slope and intercept) are buffers: state_dict and save_pretrained keep them.
    """

    line_residual: Tensor
    line_noise: Tensor
    line_deviation: Tensor
    best: Tensor

    def __init__(self, *, method: str = "noise", **arguments: Any) -> None:
        super().__init__(**arguments)
        check_method(method)
        self.method = method
        own = stem_layers(self)[0].lmbda
        self.probe = float(own)
        for name in METHODS:
            self.register_buffer(f"line_{name}", torch.tensor([0.0, self.probe]))
        self.register_buffer("best", torch.tensor(METHODS.index(method)))

    def feature(self, pictures: Tensor, method: str | None = None) -> Tensor:
        """What a method reads off each picture, (N,)."""
        method = method or self.method
        if method != "residual":
            return noise_deviation(pictures) if method == "noise" else mean_deviation(pictures)
        return residual(stem_layers(self)[0], (middle(pictures) - self.mean) / self.std, self.probe)

    def lmbda_of(self, pictures: Tensor) -> Tensor:
        """The lmbda of each picture, (N,); differentiable."""
        slope, intercept = getattr(self, f"line_{self.method}")
        return (slope * self.feature(pictures) + intercept).clamp(self.probe, max(MOST, self.probe))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits.

        Raises:
            ValueError: pictures leave [0, 1].
        """
        check_range(pictures)
        return self.at(pictures, self.lmbda_of(pictures))

    def at(self, pictures: Tensor, lmbda: Tensor) -> Tensor:
        """Logits at given lmbda, one per picture."""
        with stem_lmbda(self, lmbda.view(-1, 1, 1, 1)):
            return self.logits(pictures)

    def logits(self, pictures: Tensor) -> Tensor:
        """Logits at the lmbda that the stem has, as Classifier gives them."""
        return super().forward(pictures)

    @property
    def lines(self) -> dict[str, Tensor]:
        """The calibration, as `Classifier.calibration` holds it."""
        return {name: getattr(self, name).clone() for name in (*(f"line_{m}" for m in METHODS), "best")}


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")


def adapt(
    model: Classifier,
    method: str | None = None,
    pictures: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
) -> AdaptiveClassifier:
    """A copy of a model that chooses its stem's lmbda for each picture by itself.

    Args:
        model: a Classifier with a sparse coding layer.
        method: "residual", "noise" or "deviation"; None takes the one that did best on half of the calibration's
            pictures, which the lines were not fitted to.
        pictures: (N, C, H, W), uint8 or in [0, 1], of training, to calibrate with: never those it is judged on.
            None takes the calibration that the model brings along.
        labels: (N,) of these pictures.
        seed: of the calibration's noise.

    Returns:
        The model for inference, in evaluation mode; it takes the same pictures in [0, 1].

    Raises:
        TypeError: the model is no Classifier.
        ValueError: it has no sparse coding layer (a ResNet: lmbda has no meaning there) or no calibration, or
            there is no such method.

    >>> model = Classifier("sdnet18", options={"width": 2}).eval()
    >>> pictures, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    >>> adapted = adapt(model, "noise", pictures, labels)
    >>> tuple(adapted(pictures).shape)
    (8, 10)
    """
    if not isinstance(model, Classifier):
        raise TypeError(f"model must be an sdnet.Classifier, got {type(model).__name__}")
    stem_layers(model)
    if method is not None:
        check_method(method)
    made = _built(model, method or METHODS[0])
    if pictures is not None:
        if labels is None or len(labels) != len(pictures):
            raise ValueError("labels must be given for the pictures, one each")
        from .calibrate import calibrate

        calibrate(made, pictures, labels, seed)
    elif isinstance(model, AdaptiveClassifier) or model.calibration is not None:
        lines = model.lines if isinstance(model, AdaptiveClassifier) else model.calibration or {}
        made.load_state_dict(lines, strict=False)
    else:
        raise ValueError(
            "the model has no calibration: give training pictures and their labels, or run sdnet calibrate"
        )
    if method is None and METHODS[int(made.best)] != made.method:
        # Built again, so that the saved configuration names the method.
        return _built(made, METHODS[int(made.best)])
    return made


def _built(model: Classifier, method: str) -> AdaptiveClassifier:
    """A new model around a copy of the network as it is, in its place and in evaluation mode."""
    made = AdaptiveClassifier(method=method, **model.arguments)
    made.network = copy.deepcopy(model.network)
    made.probe = float(stem_layers(made)[0].lmbda)
    for name, value in model.named_buffers(recurse=False):
        setattr(made, name, value.clone())
    return made.to(model.mean).eval()
