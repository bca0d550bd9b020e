"""What the tests of attacks share: an SDNet that knows digits a little. Skips where a library is missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

for package in (
    "foolbox",
    "huggingface_hub",
    "matplotlib",
    "pyautoattack",
    "sklearn",
    "timm",
    "torchvision",
    "typer",
):
    pytest.importorskip(package)

from sdnet.models import Classifier  # noqa: E402
from sdnet.robust.adaptive import AdaptiveClassifier  # noqa: E402
from sdnet.robust.attacks import Effort, Threat  # noqa: E402
from sdnet.robust.pictures import Labelled, arrays, spread  # noqa: E402

LINF = Threat("Linf", 16 / 255)
QUICK = Effort(restarts=1, steps=5, queries=5)


@pytest.fixture(scope="module")
def digits() -> Labelled:
    return spread(arrays("digits", None).test, 24)


@pytest.fixture(scope="module")
def model() -> Classifier:
    """An SDNet that has learned the digits a little, in about a second."""
    torch.manual_seed(0)
    made = Classifier("sdnet18", std=[0.5] * 3, options={"width": 4}, classes=tuple("0123456789"))
    training = spread(arrays("digits", None).train, 600)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(60):
        part = slice(step * 50 % 600, step * 50 % 600 + 50)
        loss = nn.functional.cross_entropy(made(training.pictures[part] / 255), training.labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def automatic(model: Classifier) -> AdaptiveClassifier:
    made = AdaptiveClassifier(method="residual", **model.arguments).eval().requires_grad_(False)
    made.load_state_dict({**made.state_dict(), **model.state_dict(), "line_residual": torch.tensor([0.3, 0.15])})
    return made


def pair(digits: Labelled) -> tuple[Tensor, Tensor]:
    return digits.pictures / 255, digits.labels


class Cut(nn.Module):
    """A model that no gradient leaves: robust to its own gradient's attacks alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach() + 0 * x)
