"""csc.tune, without importing triton before it is called."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def tune(
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    layout: str = "contiguous",
    device: str = "cuda",
) -> dict[str, tuple[float, float]]:
    """Time block sizes of the Triton kernels on this GPU and keep the best for later calls and processes.

    The table is replaced at once, in `$CSC_KERNELS_CACHE` or the user's cache directory; delete it to go back to
    the one shipped. Nothing is ever tuned without this call.

    Args:
        dtypes: float32, float16 or bfloat16; the 16-bit dtypes share their rows.
        layout: "contiguous" or "channels_last".
        device: the GPU.

    Returns:
        For every row that was tuned its milliseconds before and after.

    Raises:
        RuntimeError: there is no GPU, or no triton.
        ValueError: no such layout.

    >>> tune()  # doctest: +SKIP
    {'fista 2 half sm90': (0.012, 0.009)}
    """
    if not torch.cuda.is_available():
        raise RuntimeError("csc.tune times kernels on a GPU, and there is none")
    from . import triton_backend

    reason = triton_backend.unavailable()
    if reason is not None:
        raise RuntimeError(f"csc.tune needs the triton backend: {reason}")
    from .triton.tune import tune as tune_triton

    return tune_triton(dtypes=dtypes, layout=layout, device=device)
