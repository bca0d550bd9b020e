"""Checkpoints: written aside and renamed, and refused by name when they are truncated or foreign."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import written_aside
from .recipe import Recipe

FORMAT = "sdnet training 1"
KEYS = ("recipe", "step", "best", "network", "optimizer", "average", "generator")

# Fields of a recipe that may change between two calls of one run: where and how fast it runs, not what it learns.
FREE = (
    ("data", "root"),
    ("data", "download"),
    ("data", "workers"),
    ("checkpoint_steps",),
    ("devices",),
    ("nodes",),
    ("strategy",),
)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state; `path` holds the last one or this one, whole, at any moment.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with written_aside(path) as aside:
        try:
            torch.save({"format": FORMAT, **state}, aside)
        except RuntimeError as error:
            # torch's zip writer turns a failed write(2) into a RuntimeError of its own.
            raise OSError(
                f"torch could not write it, the disk may be full ({str(error).splitlines()[0]})"
            ) from error


def load(path: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A training state of this recipe, on the CPU.

    Raises:
        CheckpointError: the file is truncated, no checkpoint of this package, or of another recipe.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums.
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"{broken} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file can fail in any way.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or no checkpoint ({reason}). Remove it to start again, or put a whole one there"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of sdnet train: it lacks the mark {FORMAT!r}")
    lacking = [key for key in KEYS if key not in state]
    if lacking:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(lacking)}")
    differing = sorted(_differences(_with_defaults(state["recipe"], Recipe().as_dict()), recipe))
    if differing:
        listed = "\n  ".join(differing)
        raise CheckpointError(f"{path} is of another recipe; choose another --out, or set back:\n  {listed}")
    return state


def _with_defaults(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the fields that came after it was saved."""
    nested = {
        name: _with_defaults(saved[name], value)
        for name, value in defaults.items()
        if isinstance(value, Mapping) and isinstance(saved.get(name), Mapping)
    }
    return {**defaults, **saved, **nested}


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], at: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name in sorted(saved.keys() | wanted.keys()):
        path = (*at, name)
        before, now = saved.get(name), wanted.get(name)
        if path in FREE:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differences(before, now, path)
        elif _plain(before) != _plain(now):
            found.append(f"{'.'.join(path)}: {before} in the checkpoint, {now} now")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
