"""The layer in plain PyTorch: what benchmarks, demo and tests hold csc_kernels against.

`Published` does what the published layer does, dead work included; `cleaned` is what a careful user of
PyTorch would write. Both give the code of `csc_kernels.fista` from zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cleaned(
    x: Tensor,
    dictionary: Tensor,
    lmbda: float,
    step_size: float,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Two nonnegative steps from zero, for eager mode and torch.compile alike.

    The step size is folded into the small dictionary and the threshold into the convolution's bias, so that
    of the codes nothing is written but the convolutions, and sum and relu in place on top of them.

    Args:
        x: images, (N, M, H, W).
        dictionary: K atoms of unit norm, (K, M, kH, kW).

    Returns:
        The code, (N, K, H', W').

    >>> x, dictionary = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    >>> tuple(cleaned(x, dictionary, 0.1, 0.05, padding=1).shape)
    (2, 4, 8, 8)
    """
    scaled = step_size * dictionary
    bias = dictionary.new_full((dictionary.shape[0],), -step_size * lmbda)
    z = F.conv2d(x, scaled, bias, stride, padding).relu_()
    rest = unreached(x, z, dictionary, stride, padding)
    r = x - F.conv_transpose2d(z, dictionary, None, stride, padding, rest)
    return F.conv2d(r, scaled, bias, stride, padding).add_(z).relu_()


def unreached(x: Tensor, z: Tensor, dictionary: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Rows and columns at the end of x that no atom reaches: the output_padding of the synthesis."""
    rows, columns = (
        size + 2 * padding - (code - 1) * stride - kernel
        for size, code, kernel in zip(x.shape[2:], z.shape[2:], dictionary.shape[2:])
    )
    return rows, columns


class Published(nn.Module):
    """The layer as its authors published it (Dai et al., NeurIPS 2022, arXiv 2210.12945), behaviourally.

    Every forward normalises the atoms in place, and computes a reconstruction and two losses that nobody
    reads. `update_step_size` is the power iteration that their training and validation loops call before
    every batch: at most 50 products, each of which the host waits for.

    >>> layer = Published(3, 4, 3, padding=1)
    >>> x = torch.randn(2, 3, 8, 8)
    >>> layer.update_step_size((8, 8))
    >>> tuple(layer(x).shape)
    (2, 4, 8, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        lmbda: float = 0.1,
        mu: float = 0.0,
        n_iter: int = 2,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.lmbda, self.mu, self.n_iter = lmbda, mu, n_iter
        self.step_size = 0.1
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight)
        self.last_vector: Tensor | None = None

    def analysis(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)

    def synthesis(self, z: Tensor) -> Tensor:
        return F.conv_transpose2d(z, self.weight, None, self.stride, self.padding, 0 if self.stride == 1 else 1)

    @torch.no_grad()
    def update_step_size(self, code_size: tuple[int, int]) -> None:
        """0.9 / ||A||^2 by a power iteration on one code map, which starts where the last one ended."""
        v = self.last_vector
        if v is None:
            v = torch.randn(1, self.weight.shape[0], *code_size).to(self.weight)
        v = v / v.norm()
        for _ in range(50):
            v_next = self.analysis(self.synthesis(v))
            v_next = v_next / v_next.norm()
            change = (v_next - v).square().sum().item()
            v = v_next
            if change <= 1e-5:
                break
        self.last_vector = v
        self.step_size = 0.9 / self.synthesis(v).square().sum().item()

    def prox(self, v: Tensor) -> Tensor:
        scale = 1 + self.step_size * self.mu
        return F.relu(F.softshrink(v / scale, self.step_size * self.lmbda / scale))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            norm = self.weight.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            self.weight.copy_(self.weight / norm)
        z = z_last = self.prox(self.step_size * self.analysis(x))
        t = (1 + 5**0.5) / 2
        for k in range(2, self.n_iter + 1):
            y = z
            if k > 2:
                t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
                y = z + (t - 1) / t_next * (z - z_last)
                t = t_next
            gradient = self.analysis(x - self.synthesis(z))
            z_last, z = z, self.prox(y + self.step_size * gradient)
        # Computed at every forward, and read by nobody.
        self.losses(x, z)
        return z

    def losses(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Squared residual and weighted l1 norm."""
        return (x - self.synthesis(z)).square().sum(), self.lmbda * z.abs().sum()
