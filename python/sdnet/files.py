"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from .errors import UserError


def check_page(out: Path) -> None:
    """Raises UserError where a page would not end in .html."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is a page and must end in .html, got {out}")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when the block ends well, and else it goes.

    The suffix stays, by which writers choose the format. What was written is on the disk before it gets its
    name, so that a crash of the machine leaves the old file or the new one.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the old file is as it was.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _put(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def files_written_aside(folder: Path) -> Iterator[Path]:
    """A folder to write to; its files become those of `folder` when the block ends well, and else they go.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the old files are as they were.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            yield Path(aside)
            folder.mkdir(exist_ok=True)
            for file in sorted(Path(aside).iterdir()):
                _put(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def remove_leftovers(folder: Path, files: Sequence[str], folders: Sequence[str]) -> None:
    """What killed processes had begun to write aside for these names, where nobody else writes them."""
    for path in folder.glob(".*"):
        for name in map(Path, files):
            if path.is_file() and re.fullmatch(rf"\.{name.stem}\.\d+\{name.suffix}", path.name):
                path.unlink(missing_ok=True)
        for name in folders:
            # As TemporaryDirectory chooses them.
            if path.is_dir() and re.fullmatch(rf"\.{name}\.[a-z0-9_]{{8}}", path.name):
                shutil.rmtree(path, ignore_errors=True)


def _put(aside: Path, path: Path) -> None:
    """What was written is on the disk before it gets its name."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
