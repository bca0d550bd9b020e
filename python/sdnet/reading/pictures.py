"""A few pictures to look at a network with."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..data.decode import SUFFIXES, read_picture
from ..errors import DataError

COUNT = 8


def few_pictures(folder: Path | None) -> Tensor:
    """The first pictures of a folder, of one size, or test digits: (N, 3, H, W) in [0, 1].

    Raises:
        DataError: the folder has no pictures, an unreadable one, or pictures of several sizes.
    """
    if folder is None:
        from ..data.digits import load

        pictures = list(load().test.images[:COUNT])
    else:
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
        paths = sorted(found)[:COUNT]
        if not paths:
            raise DataError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
        try:
            contents = [path.read_bytes() for path in paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
        first = read_picture(contents[0], str(paths[0]))
        pictures = [read_picture(content, str(path), first.shape[:2]) for path, content in zip(paths, contents)]
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2).contiguous() / 255
