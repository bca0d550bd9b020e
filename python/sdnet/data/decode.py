"""Folders and archives of labelled picture files, <split>/<class>/<file>, decoded once into one mapped array."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from ..files import written_aside
from .arrays import Split

SUFFIXES = (".jpg", ".jpeg", ".png")


def cache_folder() -> Path:
    """Where decoded pictures are kept: $SDNET_CACHE, else ~/.cache/sdnet."""
    return Path(os.environ.get("SDNET_CACHE", "~/.cache/sdnet")).expanduser()


def decoded(source: Path, classes: Sequence[str], size: tuple[int, int]) -> dict[str, Split]:
    """The splits of a folder or tar archive of pictures, by name; decoded at the first call, mapped after.

    Args:
        source: holds <split>/<class>/<picture>, at any depth.
        classes: names of the class folders, in the order of the labels.
        size: rows and columns that every picture must have.

    Raises:
        DataError: a picture is unreadable or has another size, or a class is empty; the message names it.
    """
    key = hashlib.sha256(f"{source.resolve()} {_stamp(source)} {list(classes)}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"{source.name.split('.')[0]}-{key}"
    if not (folder / "complete").exists():
        _decode(source, classes, size, folder)
    names = (folder / "complete").read_text().split()
    return {
        name: Split(
            numpy.load(folder / f"{name}-images.npy", mmap_mode="r"), numpy.load(folder / f"{name}-labels.npy")
        )
        for name in names
    }


def _stamp(source: Path) -> str:
    """Changes when files of the source come or go, without reading them."""
    folders = [source, *sorted(path for path in source.glob("**/") if source.is_dir())]
    return " ".join(f"{folder.stat().st_mtime_ns}:{folder.stat().st_size}" for folder in folders)


def _decode(source: Path, classes: Sequence[str], size: tuple[int, int], folder: Path) -> None:
    label_of = {name: label for label, name in enumerate(classes)}
    found: dict[str, list[tuple[int, str, numpy.ndarray]]] = {}
    for path, content in _files(source):
        if len(path.parts) < 3:
            raise DataError(f"{source}: {path} does not lie in <split>/<class>/")
        split, name = path.parts[-3:-1]
        if name not in label_of:
            raise DataError(f"{source}: {path} is of no known class; the classes are {', '.join(classes)}")
        picture = read_picture(content, f"{source}: {path}", size)
        found.setdefault(split, []).append((label_of[name], path.name, picture))
    if not found:
        raise DataError(f"{source} holds no pictures <split>/<class>/<file> ({', '.join(SUFFIXES)})")
    for split, items in found.items():
        items.sort(key=lambda item: item[:2])
        labels = numpy.array([label for label, _, _ in items], dtype=numpy.int64)
        empty = [classes[label] for label in numpy.flatnonzero(numpy.bincount(labels, minlength=len(classes)) == 0)]
        if empty:
            raise DataError(f"{source}: {split} has no pictures of {', '.join(empty)}")
        images = numpy.stack([picture for _, _, picture in items])
        for kind, array in (("images", images), ("labels", labels)):
            with written_aside(folder / f"{split}-{kind}.npy") as aside:
                numpy.save(aside, array)
    with written_aside(folder / "complete") as aside:
        aside.write_text(" ".join(sorted(found)))


def read_picture(content: bytes, name: str, size: tuple[int, int] | None = None) -> numpy.ndarray:
    """A picture file as (rows, columns, 3), uint8."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith("I"):  # 16 bits of grey, of which a conversion keeps the lower half.
                image = Image.fromarray((numpy.asarray(image).clip(0, 65535) >> 8).astype(numpy.uint8))
            picture = numpy.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{name} is no readable picture: its content has no known format") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise DataError(f"{name} is no readable picture: {error}") from None
    if size is not None and picture.shape[:2] != size:
        raise DataError(f"{name} has {picture.shape[0]}x{picture.shape[1]} pixels, expected {size[0]}x{size[1]}")
    return picture


def _files(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names below the source and contents of its picture files."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path.is_dir():
                continue
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from None
            yield PurePosixPath(path.relative_to(source.parent).as_posix()), content
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isfile() and path.suffix.lower() in SUFFIXES:
                    yield path, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{source} is damaged or no archive ({error}): download it again") from None
