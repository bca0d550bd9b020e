"""A trace of torch.profiler, and the command lines of Nsight for the same work.

    python bench/profile_gpu.py --out bench/results

Runs on the CPU where there is no GPU. The traces open in chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import csc_kernels as csc

NSIGHT = """\
# Where the time of a whole run goes:
nsys profile --trace=cuda,nvtx --output={out}/fista {command} --steps 20
# What bounds each kernel: memory, tensor cores, occupancy, bank conflicts.
ncu --set full --kernel-name 'regex:.*(fista|residual|gradient|correlation).*' --launch-skip 20 --launch-count 20 \\
    --export {out}/fista {command} --steps 3
"""


def work(device: str, steps: int) -> None:
    """Training steps of a stem and of a wide layer."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    stem = csc.CSCConv2d(3, 64, 3, padding=1).to(device, dtype)
    wide = csc.CSCConv2d(64, 64, 3, padding=1).to(device, dtype)
    x = torch.randn(256 if device == "cuda" else 8, 3, 32, 32, device=device, dtype=dtype)
    for _ in range(steps):
        wide(stem(x)).square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--steps", type=int, help="run so many steps, and profile nothing")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("torch sees no GPU: the trace is of the CPU, and nsight.txt for later", file=sys.stderr)
    if options.steps is not None:
        work(device, options.steps)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    commands = options.out / "nsight.txt"
    commands.write_text(NSIGHT.format(out=options.out, command="python bench/profile_gpu.py"))
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    work(device, 3)
    with profile(activities=activities, record_shapes=True) as trace:
        work(device, 5)
    trace.export_chrome_trace(str(options.out / f"trace-{device}.json"))
    key = "cuda_time_total" if device == "cuda" else "cpu_time_total"
    print(trace.key_averages().table(sort_by=key, row_limit=20))
    print(f"wrote {commands} and {options.out / f'trace-{device}.json'}")


if __name__ == "__main__":
    main()
