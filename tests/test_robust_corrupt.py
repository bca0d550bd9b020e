"""Corruptions: the published formulas and constants, seeds, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

for package in ("huggingface_hub", "matplotlib", "sklearn", "timm", "torchvision", "typer"):
    pytest.importorskip(package)

import sdnet  # noqa: E402
from sdnet.errors import DataError, UserError  # noqa: E402
from sdnet.robust.corruptions import NOISES, OTHERS, SCAN, SEVERITIES, cifar10c, corrupt, noise_constant  # noqa: E402


def grey(value: int = 128, count: int = 8) -> torch.Tensor:
    return torch.full((count, 3, 32, 32), value, dtype=torch.uint8)


def test_the_public_name_is_the_function() -> None:
    assert sdnet.corrupt is corrupt


@pytest.mark.parametrize("corruption", NOISES)
@pytest.mark.parametrize("severity", [1, 5])
def test_the_noise_has_the_published_mean_and_deviation(corruption: str, severity: int) -> None:
    c, x, count = SEVERITIES["cifar"][corruption][severity - 1], 128 / 255, 8 * 3 * 32 * 32
    deviation = {
        "gaussian_noise": c, "shot_noise": (x / c) ** 0.5, "speckle_noise": x * c,
        "impulse_noise": (c / 2 * (1 - x) ** 2 + c / 2 * x**2) ** 0.5,
    }[corruption]  # fmt: skip
    noise = (corrupt(grey(), corruption, severity).double() - 128) / 255
    # Truncation lowers changed values by half a step on average; impulses are exact.
    shift = 0 if corruption == "impulse_noise" else -0.5 / 255
    assert abs(noise.mean().item() - shift) < 5 * deviation / count**0.5
    assert noise.std().item() == pytest.approx(deviation, rel=0.06 if corruption == "impulse_noise" else 0.02)


def test_impulses_are_black_or_white_per_number_and_leave_the_rest() -> None:
    noisy = corrupt(grey(), "impulse_noise", constant=0.3)
    shares = [(noisy == value).float().mean().item() for value in (0, 255, 128)]
    assert shares == pytest.approx([0.15, 0.15, 0.7], abs=0.01)
    hit = noisy != 128
    assert (hit.any(1) & ~hit.all(1)).any()


def test_values_are_cut_and_not_rounded() -> None:
    noisy = corrupt(grey(), "gaussian_noise", constant=1e-9)
    assert noisy.unique().tolist() == [127, 128]


def test_all_values_survive_the_way_through_floating_point() -> None:
    pictures = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(corrupt(pictures, "impulse_noise", constant=1e-12), pictures)


def test_a_seed_gives_the_same_noise_and_another_gives_another() -> None:
    first, again, other = (corrupt(grey(), "shot_noise", 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("corruption", NOISES)
def test_fewer_pictures_get_the_noise_that_more_get(corruption: str) -> None:
    pictures = torch.randint(256, (150, 3, 5, 7), dtype=torch.uint8)
    assert torch.equal(corrupt(pictures, corruption, 4)[:70], corrupt(pictures[:70], corruption, 4))


def test_floating_point_pictures_get_the_noise_of_eight_bits() -> None:
    pictures = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    noisy = corrupt(pictures / 255, "speckle_noise", 2)
    assert noisy.dtype == torch.float32
    assert torch.equal((noisy * 255).round().to(torch.uint8), corrupt(pictures, "speckle_noise", 2))


def test_a_batch_without_pictures_stays_one() -> None:
    assert corrupt(grey(count=0), "gaussian_noise", 1).shape == (0, 3, 32, 32)


def test_constants_are_the_published_ones() -> None:
    assert [noise_constant("shot_noise", s) for s in range(1, 6)] == [500, 250, 100, 75, 50]
    assert noise_constant("gaussian_noise", 5, constants="imagenet") == 0.38
    assert {name: len(levels) for name, levels in SCAN.items()} == {
        "gaussian_noise": 10, "shot_noise": 10, "impulse_noise": 10, "speckle_noise": 6,
    }  # fmt: skip
    assert SCAN["gaussian_noise"][-1] == 0.2 and SCAN["shot_noise"][-1] == 6 and SCAN["impulse_noise"][-1] == 0.3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corruption": "rain", "severity": 1}, "no corruption 'rain'; there is gaussian_noise"),
        ({"corruption": "shot_noise", "severity": 0}, "severity must be 1, 2, 3, 4 or 5, got 0"),
        ({"corruption": "shot_noise", "severity": 6}, "got 6"),
        ({"corruption": "shot_noise"}, "got None"),
        ({"corruption": "shot_noise", "severity": 1, "constant": 3.0}, "not both"),
        ({"corruption": "gaussian_noise", "constant": -0.1}, "above 0"),
        ({"corruption": "impulse_noise", "constant": 1.5}, "at most 1"),
        ({"corruption": "gaussian_noise", "severity": 1, "constants": "mnist"}, "'cifar', 'imagenet'"),
    ],
)
def test_unknown_noise_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(grey(), **options)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_pictures_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        corrupt(torch.full((1, 3, 8, 8), value), "gaussian_noise", 1)


def test_other_kinds_of_pictures_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        corrupt(torch.zeros(1, 3, 8, 8, dtype=torch.int64), "gaussian_noise", 1)
    with pytest.raises(ValueError, match="four dimensions"):
        corrupt(torch.zeros(3, 8, 8), "gaussian_noise", 1)


def test_other_corruptions_come_from_the_library_or_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match="fog needs the package imagecorruptions.*pip install"):
        corrupt(grey(), "fog", 1)


def test_the_library_gets_pictures_severity_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    def fake(image: numpy.ndarray, severity: int, corruption_name: str) -> numpy.ndarray:
        assert image.shape == (32, 32, 3) and corruption_name in OTHERS
        return image + severity + numpy.random.randint(3, size=(32, 32, 3))

    monkeypatch.setitem(sys.modules, "imagecorruptions", types.SimpleNamespace(corrupt=fake))
    before = numpy.random.get_state()[1].copy()
    first, again = (corrupt(grey(), "fog", 2, seed=3) for _ in range(2))
    assert torch.equal(first, again) and first.float().mean() > 129.9
    assert not torch.equal(first, corrupt(grey(), "fog", 2, seed=4))
    assert (numpy.random.get_state()[1] == before).all()


# The published files.


@pytest.fixture
def files(tmp_path: Path) -> Path:
    images = numpy.repeat(numpy.arange(5, dtype=numpy.uint8), 4)[:, None, None, None]
    numpy.save(tmp_path / "shot_noise.npy", numpy.broadcast_to(images, (20, 32, 32, 3)))
    numpy.save(tmp_path / "labels.npy", numpy.tile(numpy.arange(4), 5))
    return tmp_path


def test_a_severitys_rows_are_read(files: Path) -> None:
    pictures, labels = cifar10c(files, "shot_noise", 3)
    assert pictures.shape == (4, 3, 32, 32) and (pictures == 2).all() and labels.tolist() == [0, 1, 2, 3]


def test_missing_and_damaged_files_are_named(files: Path) -> None:
    with pytest.raises(DataError, match="speckle_noise.npy"):
        cifar10c(files, "speckle_noise", 1)
    (files / "shot_noise.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="damaged"):
        cifar10c(files, "shot_noise", 1)
    numpy.save(files / "shot_noise.npy", numpy.zeros((7, 3)))
    with pytest.raises(DataError, match="expected"):
        cifar10c(files, "shot_noise", 1)
