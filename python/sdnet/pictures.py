"""Photographs that installed packages bring along, and what the demo does to pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F


def photographs(size: tuple[int, int]) -> dict[str, Tensor]:
    """Six colour photographs, each (1, 3, rows, columns) in [0, 1], scaled and cropped to `size`.

    All are files inside the wheels of scikit-learn and scikit-image: nothing is downloaded.
    """
    samples = load_sample_images()
    found = {Path(name).stem: image for name, image in zip(samples.filenames, samples.images)}
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        found[name] = getattr(data, name)()
    return {name: fitted(image, size) for name, image in found.items()}


def fitted(image: numpy.ndarray, size: tuple[int, int]) -> Tensor:
    """An 8-bit image (rows, columns, 3) that just covers `size`, cut at the bottom or at both sides."""
    x = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).unsqueeze(0) / 255
    scale = max(wanted / given for wanted, given in zip(size, x.shape[2:]))
    covering = [max(wanted, round(scale * given)) for wanted, given in zip(size, x.shape[2:])]
    x = F.interpolate(x, covering, mode="bilinear", antialias=True)
    left = (covering[1] - size[1]) // 2
    return x[:, :, : size[0], left : left + size[1]].contiguous()


def low_pass(x: Tensor, sigma: float = 4.0) -> Tensor:
    """Gaussian blur of images (N, C, H, W), their borders mirrored.

    What it takes away is what a convolutional dictionary describes well: small atoms would need many
    coefficients for the slow changes of brightness.
    """
    radius = round(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.pad(x, (radius,) * 4, mode="reflect")
    x = F.conv2d(x, weights, groups=x.shape[1])
    return F.conv2d(x, weights.transpose(2, 3), groups=x.shape[1])


def random_crops(images: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """`count` random squares of the images (N, C, H, W): (count, C, size, size)."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    crops = []
    for _ in range(count):
        image = images[below(images.shape[0])]
        top, left = below(images.shape[2] - size + 1), below(images.shape[3] - size + 1)
        crops.append(image[:, top : top + size, left : left + size])
    return torch.stack(crops)


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * (image - truth).square().mean().log10().item()


@contextmanager
def written_aside(*paths: Path) -> Iterator[list[Path]]:
    """Names beside `paths` to write to. They become `paths` together when the block ends well; else they go.

    The suffix stays, by which writers choose the format.
    """
    asides = [path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}") for path in paths]
    try:
        yield asides
        for aside, path in zip(asides, paths):
            os.replace(aside, path)
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)
