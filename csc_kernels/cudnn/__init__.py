"""The backend "cudnn": torch's convolutions, and what follows each of them in one pass (csrc/cuda/tails.cu).

float32, float16 and bfloat16 on NVIDIA devices, any shape and number of steps. torch's own switches of its
convolutions (torch.backends.cudnn: TF32, determinism, benchmark) apply.
"""

from __future__ import annotations

from ..cuda.composed import Composed, unsupported
from ..cuda.library import unavailable
from . import passes

__all__ = [
    "fista",
    "fista_backward",
    "fista_step",
    "fista_step_backward",
    "residual",
    "residual_backward",
    "unavailable",
    "unsupported",
]

_steps = Composed(passes)
residual, residual_backward = _steps.residual, _steps.residual_backward
fista_step, fista_step_backward = _steps.fista_step, _steps.fista_step_backward
fista, fista_backward = _steps.fista, _steps.fista_backward
