"""What the tests of robust inference share: small networks and digits. Skips where a library is missing."""

from __future__ import annotations

import pytest
import torch

for package in ("huggingface_hub", "matplotlib", "sklearn", "timm", "torchvision", "typer"):
    pytest.importorskip(package)

from sdnet.models import Classifier  # noqa: E402
from sdnet.robust.pictures import Labelled, arrays, spread  # noqa: E402
from settled import settled  # noqa: E402

DIGITS = tuple("0123456789")


def tiny(name: str = "sdnet18", **options) -> Classifier:
    """Of random weights, but for batch norms that have seen digits: what it says depends on the picture."""
    torch.manual_seed(0)
    model = Classifier(name, std=[0.3] * 3, options={"width": 2, **options}, classes=DIGITS)
    return settled(model, spread(arrays("digits", None).train, 20).pictures / 255)


@pytest.fixture(scope="module")
def digits() -> Labelled:
    return spread(arrays("digits", None).test, 20)
