"""The table of block sizes: what is shipped, what `csc.tune` puts over it, and tiles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import csc_kernels as csc
from csc_kernels.triton import blocks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CSC_KERNELS_CACHE", str(tmp_path))
    blocks.table.cache_clear()
    yield
    blocks.table.cache_clear()


def shipped() -> blocks.Blocks:
    return blocks.find("residual", "wide", torch.bfloat16, CPU)


def test_every_kernel_has_a_row_for_any_architecture() -> None:
    for kernel in (
        "residual",
        "image_gradient",
        "fista_step",
        "code_gradient",
        "correlation",
        "threshold_gradient",
    ):
        for shape in ("stem", "wide"):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                assert blocks.find(kernel, shape, dtype, CPU).architecture == "any"
    assert blocks.find("fista", "2", torch.float32, CPU) is not None
    assert blocks.find("fista", "7", torch.float32, CPU) is None


def test_an_architectures_own_row_comes_first() -> None:
    own = replace(shipped(), architecture="sm90", pixels=64)
    with blocks.using(own):
        assert shipped().pixels != 64
        with blocks.pretending("sm90"):
            assert shipped() == own
    with blocks.pretending("sm90"):
        assert shipped() != own


def test_the_users_table_comes_first_and_deleting_it_brings_the_shipped_back() -> None:
    before = shipped()
    blocks.write(blocks.user_table(), [replace(before, stages=7)])
    blocks.table.cache_clear()
    assert shipped() == replace(before, stages=7)
    blocks.user_table().unlink()
    blocks.table.cache_clear()
    assert shipped() == before


def test_a_table_that_is_none_is_named() -> None:
    blocks.user_table().write_text("kernel,shape\nresidual,wide\n")
    with pytest.raises(ValueError, match="blocks.csv is no table of block sizes.*delete it"):
        shipped()


def test_a_reader_sees_the_old_table_or_the_new_one_and_never_a_part() -> None:
    rows = [replace(shipped(), shape=str(i)) for i in range(200)]
    file = blocks.user_table()
    blocks.write(file, rows)
    lengths, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            lengths.add(len(blocks.read(file)))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        blocks.write(file, rows[: 100 + 100 * (i % 2)])
    done.set()
    reader.join()
    assert lengths <= {100, 200}
    assert [path.name for path in file.parent.iterdir()] == ["blocks.csv"]


@pytest.mark.parametrize("pixels", (16, 128, 512))
def test_a_tile_has_its_pixels_and_no_side_longer_than_it_must(pixels: int) -> None:
    for rows in (1, 2, 5, 17, 224):
        for columns in (1, 3, 8, 31, 224):
            samples, height, width = blocks.tile(pixels, rows, columns)
            assert samples * height * width == pixels
            assert width <= 16 and width < 2 * columns and height < 2 * rows


def test_tuning_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RuntimeError, match="on a GPU, and there is none"):
        csc.tune()
    assert not blocks.user_table().exists()


def test_candidates_differ_from_the_row_in_one_thing() -> None:
    from csc_kernels.triton.tune import candidates

    row = shipped()
    found = list(candidates(row))
    assert found[0] == row and len(found) == len(set(found)) > 6
    for candidate in found[1:]:
        assert candidate.key == row.key
        assert sum(a != b for a, b in zip(vars(row).values(), vars(candidate).values())) == 1
