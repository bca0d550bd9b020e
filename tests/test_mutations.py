"""Every mutation of the CPU kernels still has its one place in the sources, which mutate_cpu.py then compiles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from copied import ROOT
from mutate_cpu import plant
from mutations_cpu import MUTATIONS


@pytest.mark.parametrize("file", MUTATIONS)
def test_each_can_be_planted(file: str, tmp_path: Path) -> None:
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    shutil.copy(ROOT / "csrc" / "cpu" / file, tmp_path / "csrc" / "cpu")
    assert len(plant(tmp_path, [file])) == len(MUTATIONS[file][1])
