"""The trained models that ship with the package."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError

from .errors import UserError
from .models import Classifier
from .robust.adaptive import AdaptiveClassifier


def pretrained() -> dict[str, Path]:
    """Folders of the shipped models by name: config.json, model.safetensors, and how they were trained."""
    folder = Path(str(resources.files("sdnet") / "pretrained_models"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/model.safetensors"))}


def load_pretrained(name: str) -> Classifier:
    """A trained model that ships with the package, in evaluation mode.

    Args:
        name: such as cifar10_sdnet18_w16; the last part is the width.

    Shapes:
        pictures (N, 3, 32, 32), float in [0, 1] -> logits (N, 10), in the order of `model.classes`.

    Raises:
        ValueError: there is no such model; the message lists what there is.
    """
    known = pretrained()
    if name not in known:
        raise ValueError(f"no pretrained model {name!r}; there is {', '.join(known) or 'none'}")
    return Classifier.from_pretrained(known[name]).eval()


def load_model(model: str) -> Classifier:
    """A model by name, folder of a training run, or folder that save_pretrained wrote; in evaluation mode.

    Raises:
        UserError: it is none of these, or damaged.
    """
    if model in pretrained():
        return load_pretrained(model)
    for folder in (Path(model), Path(model) / "model"):
        if (folder / "model.safetensors").exists():
            try:
                kind = AdaptiveClassifier if _is_adaptive(folder) else Classifier
                return kind.from_pretrained(folder).eval()
            except (SafetensorError, RuntimeError, TypeError, ValueError, OSError) as error:
                raise UserError(f"{folder} holds no model that fits its config.json: {error}") from None
    raise UserError(
        f"no model {model!r}: neither the folder of a run that ended an epoch nor one of "
        f"{', '.join(pretrained()) or 'none that ship'}"
    )


def _is_adaptive(folder: Path) -> bool:
    config = folder / "config.json"
    return config.exists() and "method" in json.loads(config.read_text())
