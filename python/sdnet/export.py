"""ONNX files of trained models, whose sparse codes are ordinary convolutions that every runtime has."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csc_kernels import CSCConv2d

from .files import written_aside
from .models.scn import PatchCoding, descend, descent
from .robust.adaptive import AdaptiveClassifier


class PlainCode(nn.Module):
    """A trained CSC layer in operators of ONNX: its dictionary and step size are constants.

    FISTA from zero (Beck and Teboulle 2009); with up to two steps also the published layer's.
    """

    def __init__(self, layer: CSCConv2d, size: tuple[int, int]) -> None:
        super().__init__()
        squared = layer.square_noise and layer.huber is None
        if layer.n_dict != 1 or not squared or layer.momentum == "sdnet" and layer.n_iter > 2:
            raise ValueError(f"n_dict, square_noise, huber and momentum='sdnet' have no ONNX form here: {layer}")
        if isinstance(layer.padding, str):
            raise ValueError(f"padding={layer.padding!r} has no ONNX form here, give it in pixels: {layer}")
        self.stride = layer.stride
        self.padding = (layer.padding, layer.padding) if isinstance(layer.padding, int) else tuple(layer.padding)
        self.n_iter, self.nonneg, self.momentum = layer.n_iter, layer.nonneg, layer.momentum
        kernel = layer.kernel_size
        # Rows and columns that no atom reaches: the output_padding of the synthesis.
        self.rest = tuple((n + 2 * p - k) % s for n, p, k, s in zip(size, self.padding, kernel, self.stride))
        self.register_buffer("dictionary", layer.dictionary().detach().clone())
        step = layer.step_size.detach()
        self.register_buffer("step", step.clone())
        self.register_buffer("threshold", step * torch.as_tensor(layer.lmbda, dtype=step.dtype))
        self.register_buffer("shrinkage", 1 / (1 + step * torch.as_tensor(layer.mu, dtype=step.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        z = y = None
        t = 1.0
        for _ in range(self.n_iter):
            r = x if y is None else x - F.conv_transpose2d(
                y, self.dictionary, None, self.stride, self.padding, self.rest
            )  # fmt: skip
            v = self.step * F.conv2d(r, self.dictionary, None, self.stride, self.padding)
            v = v if y is None else y + v
            following = F.relu(v - self.threshold)
            if not self.nonneg:
                following = following - F.relu(-v - self.threshold)
            following = following * self.shrinkage
            t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
            beta = 0.0 if self.momentum == "none" else (t - 1) / t_next
            y = following if z is None or beta == 0 else following + beta * (following - z)
            z, t = following, t_next
        return z


class PlainPatchCode(nn.Module):
    """A layer of SCN in operators of ONNX, its steps as constants."""

    def __init__(self, layer: PatchCoding) -> None:
        super().__init__()
        self.layer = layer
        step, contraction = descent(layer.gram())
        self.register_buffer("step", step)
        self.register_buffer("contraction", contraction)

    def forward(self, x: Tensor) -> Tensor:
        constant = self.step * (self.layer.products(x) - self.layer.lmbda.clamp_min(0))
        return self.layer.folded(descend(self.contraction, constant), x)


@torch.no_grad()
def plain(model: nn.Module, pictures: Tensor) -> nn.Module:
    """A copy of a model in evaluation mode without ops of ours, for pictures of these rows and columns."""
    if isinstance(model, AdaptiveClassifier):
        raise ValueError("automatic lmbda has no ONNX form: export the model with a fixed one")
    model = copy.deepcopy(model).eval()
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (CSCConv2d, PatchCoding)):
            places.setdefault(module, []).append(name)
    sizes: dict[nn.Module, set[tuple[int, int]]] = {layer: set() for layer in places}
    for layer in places:
        layer.register_forward_pre_hook(lambda layer, inputs: sizes[layer].add(tuple(inputs[0].shape[-2:])))
    model(pictures)
    for layer, names in places.items():
        if isinstance(layer, CSCConv2d):
            if len(sizes[layer]) != 1:
                raise ValueError(f"{names[0]} needs pictures of one size, it had {sorted(sizes[layer])}")
            made: nn.Module = PlainCode(layer, *sizes[layer])
        else:
            made = PlainPatchCode(layer)
        for name in names:
            if not name:
                return made
            model.set_submodule(name, made)
    return model


def export_onnx(model: nn.Module, pictures: Tensor, path: Path) -> None:
    """Write a model's inference as ONNX; the number of pictures stays free, rows and columns are these.

    Args:
        model: any model; its CSC layers and SCN's become operators of ONNX in a copy.
        pictures: an example, (N, C, H, W).
        path: the file.

    Raises:
        ValueError: a layer has no ONNX form; the message names it.
        UserError: the file cannot be written.
    """
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        plain(model, pictures), (pictures,), dynamo=True, verbose=False, input_names=["pictures"],
        output_names=["logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip
    with written_aside(path) as aside:
        program.save(str(aside))
