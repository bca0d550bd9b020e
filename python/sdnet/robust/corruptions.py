"""The additive noises of CIFAR-10-C and ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261).

With x in [0, 1] in double precision, of a picture of 8 bits, and c the constant of a severity:

    gaussian_noise  x + N(0, c^2)          shot_noise     Poisson(c x) / c
    speckle_noise   x + x N(0, c^2)        impulse_noise  each number hit with probability c: half 1, half 0

then clipped to [0, 1] and cut, not rounded, to 8 bits. The published generator sets no seed: its files cannot be
made again bit by bit, only read (`cifar10c`).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..errors import DataError, UserError

# The constant c of severities 1 to 5, for pictures of 32x32 and of 224x224 pixels.
SEVERITIES: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": (500, 250, 100, 75, 50),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),
    },
    "imagenet": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "speckle_noise": (0.15, 0.20, 0.35, 0.45, 0.60),
    },
}
NOISES = tuple(SEVERITIES["cifar"])
# The constants of SDNet's published scan of lmbda, which go beyond severity 5; the mildest first.
SCAN: dict[str, tuple[float, ...]] = {
    "gaussian_noise": tuple(round(0.02 * i, 2) for i in range(1, 11)),
    "shot_noise": tuple(float(c) for c in range(60, 5, -6)),
    "impulse_noise": tuple(round(0.03 * i, 2) for i in range(1, 11)),
    "speckle_noise": tuple(round(0.1 * i, 1) for i in range(1, 7)),
}
# ImageNet-C's others, which the package imagecorruptions makes.
OTHERS = (
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression", "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
# Pictures worked on at once: some ten arrays of double precision of them stay in the cache.
CHUNK = 64


def corrupt(
    pictures: Tensor,
    corruption: str,
    severity: int | None = None,
    *,
    constant: float | None = None,
    constants: str = "cifar",
    seed: int = 0,
) -> Tensor:
    """Pictures with a corruption, cut to 8 bits as the published ones are.

    Args:
        pictures: (N, C, H, W), uint8, or floating point in [0, 1] (which is first rounded to 8 bits).
        corruption: one of the four noises, or another of ImageNet-C's, which needs the package imagecorruptions
            and is made with its constants, whatever `constants` says.
        severity: 1 to 5.
        constant: of a noise, in place of a severity: sigma, the Poisson rate, or the probability.
        constants: whose severities: "cifar" for pictures of about 32x32 pixels, or "imagenet".
        seed: of the noise. A picture's noise depends on the seed and on the pictures before it alone: the first
            500 of 1,000 pictures get what 500 pictures get.

    Returns:
        Pictures of the given shape, device and dtype; floating point ones are multiples of 1/255.

    Raises:
        TypeError: pictures is no tensor of 8 bits or floating point.
        ValueError: it is no batch, or leaves [0, 1]; no such corruption, severity or constant. The message lists
            what there is.
        UserError: the corruption needs a package that is not installed.

    >>> pictures = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    >>> noisy = corrupt(pictures, "gaussian_noise", 3)
    >>> noisy.dtype, bool((noisy == corrupt(pictures, "gaussian_noise", 3)).all())
    (torch.uint8, True)
    """
    given = eight_bits(pictures)
    if corruption in OTHERS:
        made = _by_library(given, corruption, _severity(severity, constant), seed)
    else:
        made = _noisy(given, corruption, noise_constant(corruption, severity, constant, constants), seed)
    result = torch.from_numpy(made).to(pictures.device)
    return result if pictures.dtype == torch.uint8 else result.to(pictures.dtype) / 255


def noise_constant(
    corruption: str, severity: int | None = None, constant: float | None = None, constants: str = "cifar"
) -> float:
    """The constant c of a noise at a severity, or the one that is given, once it is found valid."""
    if constants not in SEVERITIES:
        raise ValueError(f"constants must be one of {tuple(SEVERITIES)}, got {constants!r}")
    if corruption not in NOISES:
        raise ValueError(f"no corruption {corruption!r}; there is {', '.join((*NOISES, *OTHERS))}")
    if constant is None:
        return SEVERITIES[constants][corruption][_severity(severity, None) - 1]
    if severity is not None:
        raise ValueError("give a severity or a constant, not both")
    most = 1.0 if corruption == "impulse_noise" else float("inf")
    if not 0 < constant <= most or constant == float("inf"):
        raise ValueError(f"the constant of {corruption} must be above 0 and at most {most:g}, got {constant}")
    return constant


def eight_bits(pictures: Tensor) -> numpy.ndarray:
    """Pictures (N, C, H, W) as uint8 on the CPU."""
    if not isinstance(pictures, Tensor) or not (pictures.dtype == torch.uint8 or pictures.is_floating_point()):
        kind = getattr(pictures, "dtype", type(pictures).__name__)
        raise TypeError(f"pictures must be a tensor, uint8 or floating point in [0, 1], got {kind}")
    if pictures.dim() != 4:
        raise ValueError(f"pictures must have four dimensions (N, C, H, W), got {tuple(pictures.shape)}")
    if pictures.dtype == torch.uint8:
        return pictures.cpu().numpy()
    check_range(pictures)
    return (pictures.detach() * 255).round().to(torch.uint8).cpu().numpy()


def check_range(pictures: Tensor) -> None:
    """Raises ValueError where pictures leave [0, 1], or are NaN."""
    if pictures.numel() and not bool(((pictures >= 0) & (pictures <= 1)).all()):
        least, most = pictures.min().item(), pictures.max().item()
        raise ValueError(
            f"pictures must be in [0, 1], got values from {least:.4g} to {most:.4g}: "
            "divide 8-bit pictures by 255, and do not normalise; the model does it"
        )


def _severity(severity: int | None, constant: float | None) -> int:
    if constant is not None:
        raise ValueError("only the four noises take a constant; give a severity")
    if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= 5:
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
    return severity


def _noisy(pictures: numpy.ndarray, corruption: str, c: float, seed: int) -> numpy.ndarray:
    # Drawn in the order of the pictures, one number each: the noise of a picture does not depend on those after it.
    generator = numpy.random.default_rng([seed, zlib.crc32(corruption.encode())])
    made = numpy.empty_like(pictures)
    for start in range(0, len(pictures), CHUNK):
        x = pictures[start : start + CHUNK] / 255.0
        if corruption == "gaussian_noise":
            y = x + c * generator.standard_normal(x.shape)
        elif corruption == "shot_noise":
            y = generator.poisson(c * x) / c
        elif corruption == "speckle_noise":
            y = x + x * (c * generator.standard_normal(x.shape))
        else:
            hit = generator.random(x.shape)
            y = numpy.where(hit < c, hit < c / 2, x)
        made[start : start + CHUNK] = numpy.clip(y, 0, 1) * 255
    return made


def _by_library(pictures: numpy.ndarray, corruption: str, severity: int, seed: int) -> numpy.ndarray:
    try:
        import imagecorruptions
    except ImportError as error:
        raise UserError(
            f"{corruption} needs the package imagecorruptions ({error}): pip install imagecorruptions-imaug. "
            f"Without it there is {', '.join(NOISES)}"
        ) from None
    # The library draws from numpy's global generator; it is put back as it was.
    before = numpy.random.get_state()
    numpy.random.seed(seed)
    try:
        images = [
            imagecorruptions.corrupt(image, severity=severity, corruption_name=corruption)
            for image in pictures.transpose(0, 2, 3, 1)
        ]
    finally:
        numpy.random.set_state(before)
    return numpy.ascontiguousarray(numpy.stack(images).transpose(0, 3, 1, 2).astype(numpy.uint8))


def cifar10c(folder: Path, corruption: str, severity: int) -> tuple[Tensor, Tensor]:
    """The published pictures of a corruption: uint8 (10000, 3, 32, 32), and labels, in CIFAR-10's test order.

    Args:
        folder: holds <corruption>.npy, uint8 (50000, 32, 32, 3) by rising severity, and labels.npy.

    Raises:
        ValueError: severity is not 1 to 5.
        DataError: a file is missing, or none of these.
    """
    severity = _severity(severity, None)
    arrays = []
    for name in (corruption, "labels"):
        path = folder / f"{name}.npy"
        try:
            arrays.append(numpy.load(path, mmap_mode="r"))
        except FileNotFoundError:
            raise DataError(f"no {path}: put CIFAR-10-C's {name}.npy there") from None
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
    images, labels = arrays
    count = len(labels) // 5
    right = images.dtype == numpy.uint8 and images.shape == (5 * count, *images.shape[1:3], 3) and labels.ndim == 1
    if not right or count == 0:
        raise DataError(
            f"{folder}: {corruption}.npy has {images.shape} of {images.dtype}, labels.npy {labels.shape}; "
            "expected (50000, 32, 32, 3) of uint8 and (50000,)"
        )
    rows = slice((severity - 1) * count, severity * count)
    pictures = torch.from_numpy(numpy.array(images[rows])).permute(0, 3, 1, 2)
    return pictures, torch.from_numpy(labels[rows].astype(numpy.int64))
