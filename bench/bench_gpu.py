"""Two-step solves on a GPU: milliseconds, and the share of the memory's and the tensor cores' peak.

    python bench/bench_gpu.py --out bench/results

Contenders run in an interleaved order with the second-level cache cold, timed with CUDA events: the definition in
eager PyTorch, torch.compile of it with max-autotune, csc.fista, and one cuDNN convolution as a yardstick, which
computes less. Writes fista-gpu.csv; docs/gpu.md says how to send it back.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import random
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn import functional as F

import csc_kernels as csc
from csc_kernels import reference

# in_channels, atoms, side, kernel, stride, batch
CASES = {
    "CIFAR stem": (3, 64, 32, 3, 1, 256),
    "ImageNet stem": (3, 64, 224, 7, 2, 64),
    "64->64, 32x32": (64, 64, 32, 3, 1, 256),
    "128->128, 16x16": (128, 128, 16, 3, 1, 256),
    "256->256, 8x8": (256, 256, 8, 3, 1, 256),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COLUMNS = (
    "case", "dtype", "layout", "mode", "contender", "p20_ms", "p50_ms", "p80_ms", "floor_gb_per_s", "tflop_per_s",
    "device", "torch", "csc_kernels", "tf32", "date",
)  # fmt: skip


def contenders(
    case: tuple[int, ...], dtype: torch.dtype, layout: str, training: bool
) -> dict[str, Callable[[], None]]:
    channels, atoms, side, kernel, stride, batch = case
    x = torch.randn(batch, channels, side, side, device="cuda", dtype=dtype).contiguous(
        memory_format=LAYOUTS[layout]
    )
    dictionary = torch.randn(atoms, channels, kernel, kernel, device="cuda", dtype=dtype)
    dictionary /= dictionary.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    step_size = 1 / csc.lipschitz(dictionary, stride=stride, padding=kernel // 2, method="bound").float()
    lmbda, mu = torch.full((), 0.1, device="cuda"), torch.zeros((), device="cuda")
    dictionary.requires_grad_(training)
    pads = (kernel // 2,) * 4

    def plain() -> torch.Tensor:
        return reference.fista(
            x, dictionary, lmbda, mu, step_size, None, None, 2, (stride, stride), pads, True, "fista"
        )[0][-1]

    def ours() -> torch.Tensor:
        return csc.fista(x, dictionary, lmbda, step_size, 2, stride=stride, padding=kernel // 2)

    def conv() -> torch.Tensor:
        return F.conv2d(x, dictionary, stride=stride, padding=kernel // 2)

    grad = torch.randn_like(conv())

    def timed(forward: Callable[[], torch.Tensor], backend: str | None = None) -> Callable[[], None]:
        def call() -> None:
            with csc.use_backend(backend) if backend else nullcontext():
                z = forward()
                if training:
                    dictionary.grad = None
                    z.backward(grad)

        return call

    compiled = torch.compile(plain, mode="max-autotune-no-cudagraphs")
    ways = {"eager": plain, "compiled": compiled, "csc.fista": ours, "one cuDNN convolution": conv}
    # The chosen backend, and each by itself: what the table of csc_kernels/backends.py is to be corrected by.
    own = [name for name in csc.available_backends() if name in csc.backends.GPU_BACKENDS]
    forced = {f"csc.fista, {name}": timed(ours, name) for name in own}
    return {name: timed(forward) for name, forward in ways.items()} | forced


def measure(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call, in an order that is drawn anew every round."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")  # More than any second-level cache holds.
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            calls[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu.py times kernels on a GPU, and there is none", file=sys.stderr)
        return 1
    facts = (
        torch.cuda.get_device_name(), torch.__version__, csc.__version__,
        torch.backends.cudnn.conv.fp32_precision, datetime.date.today().isoformat(),
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "fista-gpu.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for name, case in CASES.items():
            channels, atoms, side, kernel, stride, batch = case
            code = batch * atoms * (side // stride) ** 2
            for (kind, dtype), layout, training in (
                (d, layout, t) for d in DTYPES.items() for layout in LAYOUTS for t in (False, True)
            ):
                # One read of x and one write of the code; three products forward, ten in training.
                moved = (batch * channels * side**2 + code) * dtype.itemsize
                operations = (10 if training else 3) * 2 * code * channels * kernel**2
                for contender, times in measure(contenders(case, dtype, layout, training), options.rounds).items():
                    p20, p50, p80 = torch.tensor(times).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
                    row = (name, kind, layout, "training" if training else "forward", contender, p20, p50, p80)
                    table.writerow((*row, moved / p50 / 1e6, operations / p50 / 1e9, *facts))
                    print(*row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
