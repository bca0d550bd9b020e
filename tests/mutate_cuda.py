"""Breaks the CUDA kernels on purpose and shows that the emulation notices: python tests/mutate_cuda.py [FILE ...]

The mutations of mutations_cuda.py are compiled into one emulated device, which is told at run time which of them to
be. One is found when a result is wrong or the emulation stops. Exits with 1 when a mutation survives, and with 2
when there is an error without any.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from emulation.build import CUDA, build
from emulation.device import FULL, Device, EmulationError, emulated, tiled
from mutations_cuda import MUTATIONS
from problems import SHAPES, Problem, random_problem

import csc_kernels as csc

torch.set_num_threads(1)


def pattern(text: str) -> str:
    """A regular expression for a piece of source, with any white space where there may be some."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    return r"\s*".join(map(re.escape, tokens))


MUTANT = re.compile(r"(.*?)(\[\[|\{\{)(.*?) => (.*?)(\]\]|\}\})(.*?)(?:#(\d+))?")


def place(source: str, mutant: str) -> tuple[int, int]:
    """Where in the source a mutant lies."""
    before, _, old, _, _, after, count = MUTANT.fullmatch(mutant).groups()
    expression = f"{pattern(before)}\\s*({pattern(old)})(?=\\s*{pattern(after)})"
    places = [found.span(1) for found in re.finditer(expression, source)]
    if len(places) < int(count or 1) or (count is None and len(places) > 1):
        raise ValueError(f"{len(places)} places for {mutant}")
    return places[int(count or 1) - 1]


def with_mutants(source: str, numbered: dict[int, str]) -> str:
    """The source with a switch for every mutant."""
    spans: dict[tuple[int, int], list[int]] = {}
    for number, mutant in numbered.items():
        spans.setdefault(place(source, mutant), []).append(number)
    # The last first, and within one that holds others the inner ones: no edit moves a place that is still to come.
    ends: list[tuple[int, int, str]] = []
    for (begin, end), numbers in sorted(spans.items(), key=lambda item: (-item[0][0], item[0][1])):
        shift = sum(len(text) - (e - b) for b, e, text in ends if begin <= b and e <= end)
        text = source[begin : end + shift]
        for number in numbers:
            _, kind, _, new, *_ = MUTANT.fullmatch(numbered[number]).groups()
            switch = f"emulation::device.mutant == {number}"
            if kind == "[[":
                text = f"({switch} ? ({new}) : ({text}))"
            else:
                text = f"if ({switch}) {{ {new} }} else {{ {text} }}"
        source = source[:begin] + text + source[end + shift :]
        ends = [kept for kept in ends if not (begin <= kept[0] and kept[1] <= end)] + [(begin, end, text)]
    return source


def write_mutants(folder: Path, files: list[str]) -> dict[int, tuple[str, str]]:
    """A copy of csrc/cuda with all mutants in it; returns file and text by number."""
    kernels = folder / "csrc" / "cuda"
    shutil.copytree(CUDA, kernels)
    numbered: dict[int, tuple[str, str]] = {}
    for file in files:
        own = {len(numbered) + 1 + i: mutant for i, mutant in enumerate(MUTATIONS[file])}
        numbered |= {number: (file, mutant) for number, mutant in own.items()}
        path = kernels / file
        path.write_text(with_mutants(path.read_text(), own))
    return numbered


Compute = Callable[[Problem], torch.Tensor]


def residual(p: Problem) -> torch.Tensor:
    return csc.residual(p.x, p.z0, p.dictionary, stride=p.stride, padding=p.padding, mask=p.mask)


def step(p: Problem) -> torch.Tensor:
    z, y = csc.fista_step(
        p.x, p.z0, p.dictionary, p.lmbda, p.step_size, mu=p.mu, beta=0.3, stride=p.stride, padding=p.padding,
        nonneg=p.nonneg,
    )  # fmt: skip
    return torch.stack([z, y])


def problems() -> Iterator[tuple[Compute, Problem, dict[str, int]]]:
    """What a mutant has to solve: the function, its problem, and the state of the device."""

    def make(margin: float = 1e-6, dtype: torch.dtype = torch.float32, **options) -> Problem:
        problem = random_problem(dtype=dtype, margin=margin, **options)
        problem.step_size = problem.step_size.item()
        return problem

    far = {"stretch": 2**31 + 64}

    def cut(problem: Problem, backward: bool = False) -> tuple[Compute, Problem, dict[str, int]]:
        return Problem.solve, problem, tiled(problem, backward)

    yield Problem.solve, make(**SHAPES["rgb"] | {"size": (6, 16)}, lmbda="atom", mask="float"), {}
    yield cut(make(padding=1, size=(9, 40), n_iter=3, nonneg=False, mu=0.3, lmbda="sample"))
    yield cut(make(padding=1, size=(31, 6), n_iter=4, momentum="sdnet", z0=True, lmbda="full"))
    yield cut(make(kernel=(2, 4), stride=(2, 1), padding=(1, 2), size=(9, 40), mask="channel"))
    # More samples, whole, than blocks.
    yield Problem.solve, make(stride=(1, 3), padding=(1, 2), size=(6, 14), batch=5), {}
    yield cut(make(0, torch.bfloat16, padding=1, size=(24, 16), batch=3))
    yield cut(make(padding=1, size=(31, 6), n_iter=1))
    options = {"momentum": "none", "mask": "float", "lmbda": "atom", "mu": "sample", "atoms": 7}
    yield cut(make(padding=1, size=(31, 5), n_iter=3, z0=False, **options).leaves(), True)
    yield cut(make(padding=1, size=(31, 5), n_iter=2, z0=True, nonneg=False, **options).leaves(), True)
    yield cut(make(stride=2, padding=1, size=(9, 71), n_iter=2, **options).leaves(), True)
    # Rows of tiles whose halos begin at the same row.
    yield cut(make(kernel=(5, 3), padding=1, size=(12, 48), n_iter=3, batch=1))
    # Several blocks of atoms, and lines of x that are copied whole.
    yield cut(make(padding=1, size=(13, 40), n_iter=2, atoms=20, batch=1).leaves(), True)
    wide = {"channels": 5, "atoms": 70, "padding": 1, "size": (6, 11)}
    yield residual, make(z0=True, mask="float", **wide), {}
    yield residual, make(0, z0=True, channels=5, atoms=33, kernel=(1, 1), size=(4, 5)), {}
    yield residual, make(0, z0=True, stride=(2, 1), kernel=(2, 3), channels=5, size=(8, 9), padding=1), {}
    yield Problem.solve, make(n_iter=3, nonneg=False, lmbda="full", mu="atom", mask="float", **wide).leaves(), {}
    yield step, make(0, z0=True, n_iter=1, mu="full", lmbda="sample", **wide), {}
    yield step, make(0, z0=True, n_iter=1, stride=(2, 3), kernel=(3, 2), channels=5, size=(9, 8)), {}
    yield (
        Problem.solve,
        make(stride=(2, 1), kernel=(3, 2), channels=5, size=(36, 39), padding=1, batch=3).leaves(),
        {},
    )
    # Several tiles, or samples in one; the last of each smaller; short rows joined; more than 64 taps.
    yield residual, make(0, z0=True, channels=20, atoms=6, size=(18, 40), padding=1, batch=1), {}
    yield residual, make(0, z0=True, channels=5, atoms=9, size=(3, 20), padding=1, batch=3, stride=(1, 2)), {}
    yield step, make(0, torch.bfloat16, z0=True, channels=5, atoms=19, padding=1, size=(19, 41), batch=1), {}
    yield step, make(0, z0=True, channels=5, atoms=19, padding=1, size=(37, 9), batch=1), {}
    yield step, make(0, z0=True, channels=5, atoms=19, padding=1, size=(7, 7), batch=5), {}
    dense = {"lmbda": 0.0, "nonneg": False}
    yield Problem.solve, make(0, channels=8, atoms=5, padding=1, size=(3, 11), batch=1, **dense).leaves(), {}
    yield step, make(0, z0=True, channels=5, stride=(2, 1), kernel=(3, 5), padding=(2, 1), size=(4, 5), batch=7), {}
    # More taps than are met at once.
    yield Problem.solve, make(n_iter=1, channels=5, stride=2, kernel=(63, 66), size=(65, 69), atoms=2, batch=1), {}
    library = {"backend": "cudnn"}
    # A block of the tails has 2048 entries; masks, layouts, and more than one of everything.
    large = {"channels": 5, "atoms": 11, "padding": 1, "size": (15, 13), "batch": 3}
    options = {"lmbda": "atom", "mu": "sample", "mask": "float", "nonneg": False}
    yield Problem.solve, make(n_iter=4, z0=True, **options, **large).leaves(), library
    last = make(n_iter=3, **options, **large)
    last.x = last.x.contiguous(memory_format=torch.channels_last)
    yield Problem.solve, last.leaves(), library
    struck = make(padding=1, size=(6, 6))
    struck.x[0, 0, 2, 2] = torch.nan
    yield Problem.solve, struck, {}
    struck = make(0, z0=True, stride=2, padding=1, channels=2, size=(8, 8), batch=1)
    struck.z0[0, 0, 1, 1] = torch.nan
    yield residual, struck, {}
    yield Problem.solve, make(padding=1, size=(5, 6), atoms=3), far


def results(compute: Compute, problem: Problem) -> list[torch.Tensor]:
    """What is computed and, where tensors ask for it, its gradients."""
    z = compute(problem)
    wanted = [
        leaf for name, leaf in problem.tensors.items() if leaf.requires_grad and name not in ("mask", "step_size")
    ]
    if problem.mu is not None and isinstance(problem.mu, torch.Tensor) and problem.mu.shape[-1] > 1:
        wanted = [leaf for leaf in wanted if leaf is not problem.mu]
    if isinstance(problem.lmbda, torch.Tensor) and problem.lmbda.shape[-1] > 1:
        wanted = [leaf for leaf in wanted if leaf is not problem.lmbda]
    if not wanted:
        return [z]
    return [z, *torch.autograd.grad(z.square().sum(), wanted)]


def served(problem: Problem) -> Problem:
    """Leaves without those that the backend has no gradient for."""
    if not problem.x.requires_grad:
        return problem
    leaves = problem.leaves()
    for name, leaf in leaves.tensors.items():
        if name in ("mask", "step_size") or (name in ("lmbda", "mu") and leaf.dim() > 1 and leaf.shape[-1] > 1):
            leaf.requires_grad_(False)
    return leaves


def equal(found: torch.Tensor, right: torch.Tensor) -> bool:
    """As near as rounding allows; NaN where the other is NaN."""
    scale = float(right.abs().nan_to_num(0).max())
    tolerance = 0.05 if found.dtype is torch.bfloat16 else 2e-5
    return torch.allclose(found.double(), right.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def prepare() -> list:
    """The problems, with their right results from the reference."""
    prepared = []
    for compute, problem, state in problems():
        problem = served(problem)
        with csc.use_backend("reference"):
            prepared.append((compute, problem, state, [t.detach() for t in results(compute, problem)]))
    return prepared


class Finder:
    """Runs the problems, first those that found the most in a file so far, then the quick ones."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.prepared = prepare()
        self.finds: Counter[tuple[str, int]] = Counter()
        self.seconds = [0.0] * len(self.prepared)

    def find(self, file: str) -> str | None:
        """What shows that the kernels are wrong; None when nothing does."""
        order = range(len(self.prepared))
        for index in sorted(order, key=lambda i: (-self.finds[file, i], self.seconds[i])):
            start = time.perf_counter()
            wrong = self._run(*self.prepared[index])
            if wrong is not None:
                self.finds[file, index] += 1
                return f"problem {index}: {wrong}"
            self.seconds[index] = time.perf_counter() - start
        return None

    def _run(self, compute: Compute, problem: Problem, state: dict[str, int], right: list) -> str | None:
        for name, value in (FULL | state).items():
            setattr(self.device, name, value)
        try:
            with emulated(self.device), csc.use_backend(state.get("backend", "cuda")):
                outcome = results(compute, problem)
        except EmulationError as error:
            lines = [line for line in str(error).splitlines() if "rror" in line or "emulation:" in line]
            return lines[-1] if lines else str(error)
        return None if all(map(equal, outcome, right)) else "wrong result"


def main() -> int:
    files, start = sys.argv[1:] or list(MUTATIONS), time.perf_counter()
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        numbered = write_mutants(Path(folder), files)
        device = Device(build(Path(folder) / "build", Path(folder) / "csrc" / "cuda", sanitized=False))
        finder = Finder(device)
        wrong = finder.find("")
        if wrong is not None:
            print(f"without any mutation: {wrong}")
            return 2
        for device.mutant, (file, mutant) in numbered.items():
            begin = time.perf_counter()
            found = finder.find(file)
            survivors += found is None
            verdict = "SURVIVED" if found is None else f"caught by {found}"
            print(f"{file}: {mutant}: {verdict} ({time.perf_counter() - begin:.1f} s)", flush=True)
        device.close()
    count = len(numbered)
    print(f"{count - survivors} of {count} mutations are caught in {time.perf_counter() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
