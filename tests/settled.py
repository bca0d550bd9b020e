"""Networks in evaluation mode whose codes are not empty, and pictures for them."""

import torch
from torch import Tensor, nn


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def settled(model: nn.Module, pictures: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms' statistics those of these pictures.

    With the statistics it is born with a network of random weights loses its signal: the codes of all deep layers
    are zero, and so are their gradients.
    """
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    model.train()(pictures)
    return model.eval()
