"""What the benchmarks compare computes the same, and what they report is in the files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import csc_kernels as csc

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))
for needed in ("rich", "typer", "matplotlib"):
    pytest.importorskip(needed)

import cases  # noqa: E402
import harness  # noqa: E402
import report  # noqa: E402
import runs  # noqa: E402
from sdnet.plain import Published, cleaned  # noqa: E402

SMALL = {
    "cifar stem": cases.Case(3, 8, 9, 3, 1, 1, 2),
    "imagenet stem": cases.Case(3, 8, 20, 7, 2, 3, 2),
    "wide": cases.Case(16, 16, 6, 3, 1, 1, 2),
}
# Gradients jump where rounding changes the support of a code: float32 is compared on codes only.
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
layouts = pytest.mark.parametrize("layout", cases.LAYOUTS)


@small
@layouts
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ["cleaned", "csc.fista", "published"])
def test_contenders_compute_the_same_code(name, case, layout, dtype, tolerance) -> None:
    problem = cases.Problem.draw(case, layout, dtype, training=False)
    oracle = cases.Problem.draw(case, layout, torch.float64, training=False)
    options = {"stride": case.stride, "padding": case.padding}
    with csc.use_backend("reference"):
        expected = csc.fista(
            oracle.x, oracle.dictionary.to(dtype).double(), cases.LMBDA, oracle.step_size, **options
        )
    if name == "published":
        layer = problem.layer(Published)
        layer.step_size = problem.step_size
        code = layer(problem.x)
    else:
        code = cases.forward(name, problem)[0]()
    assert (expected > 0).any()
    torch.testing.assert_close(code.double(), expected, rtol=tolerance, atol=tolerance)


@small
@pytest.mark.parametrize("name", ["cleaned", "csc.fista", "published"])
def test_contenders_compute_the_same_gradients(name, case) -> None:
    problem = cases.Problem.draw(case, "contiguous", torch.float64, training=True)
    expected = cases.train(cases.forward("cleaned", problem)[0], problem)
    other = cases.Problem.draw(case, "contiguous", torch.float64, training=True)
    if name == "published":
        layer = other.layer(Published)
        layer.step_size = other.step_size
        gradients = cases.train(lambda: layer(other.x), other)
    else:
        gradients = cases.train(cases.forward(name, other)[0], other)
    for gradient, value in zip(gradients, expected):
        torch.testing.assert_close(gradient, value, rtol=1e-10, atol=1e-10)


@small
def test_published_step_size_is_that_of_the_power_iteration(case) -> None:
    problem = cases.Problem.draw(case, "contiguous", torch.float64, training=False)
    layer = problem.layer(Published)
    torch.manual_seed(0)
    for _ in range(20):
        layer.update_step_size((case.code_size, case.code_size))
    options = {"stride": case.stride, "padding": case.padding, "input_size": case.size}
    lipschitz = csc.lipschitz(problem.dictionary, tol=1e-9, max_iter=2000, **options)
    assert layer.step_size == pytest.approx(0.9 / float(lipschitz), rel=0.02)


def test_plain_versions_take_more_steps_than_two() -> None:
    problem = cases.Problem.draw(SMALL["cifar stem"], "contiguous", torch.float64, training=False)
    layer = problem.layer(Published)
    layer.step_size, layer.n_iter = problem.step_size, 6
    options = {"n_iter": 6, "padding": 1, "momentum": "sdnet"}
    expected = csc.fista(problem.x, problem.dictionary, cases.LMBDA, problem.step_size, **options)
    torch.testing.assert_close(layer(problem.x), expected, rtol=1e-12, atol=1e-12)


def test_cleaned_reaches_sizes_that_the_stride_does_not_divide() -> None:
    x, dictionary = torch.randn(2, 3, 13, 16, dtype=torch.float64), torch.randn(4, 3, 3, 5).double()
    code = cleaned(x, dictionary, 0.1, 0.01, stride=2, padding=1)
    expected = csc.fista(x, dictionary, 0.1, 0.01, stride=2, padding=1)
    torch.testing.assert_close(code, expected, rtol=1e-12, atol=1e-12)


def _rows(medians: dict[str, float], case: str = "a") -> list[dict[str, object]]:
    rows = []
    for name, value in medians.items():
        one = harness.Contender(name, "contiguous", harness.nothing, times=[value / 1e3] * 3)
        facts = {"case": case, "mode": "forward", "dtype": "float32", "allocator": "keep"}
        rows.append({**facts, **harness.provenance(), **one.row()})
    return rows


def test_best_pytorch_is_the_fastest_of_them(tmp_path: Path) -> None:
    medians = {"published": 40.0, "cleaned": 8.0, "compiled": 6.0, "conv2d": 1.0, "csc.fista": 2.0}
    harness.update_csv(tmp_path / "fista.csv", _rows(medians | {"CSCConv2d": 2.5}))
    (run,) = runs.runs_of(tmp_path / "fista.csv")
    assert runs.measure("vs best PyTorch", run) == pytest.approx(3.0)
    assert runs.measure("vs as shipped", run) == pytest.approx(16.0)


def test_ablation_has_every_backend_and_path(tmp_path: Path) -> None:
    rows = _rows({"published": 12.0, "cleaned": 6.0})
    for backend, value in (("native", 2.0), ("native direct", 3.0)):
        rows += [row | {"backend": backend} for row in _rows({"csc.fista": value})]
    harness.update_csv(tmp_path / "ablation.csv", rows)
    text = report.ablation_table(runs.runs_of(tmp_path / "ablation.csv"))
    assert "| kernel: native | kernel: native direct |" in text
    assert "| 2.00x | 3.00x | 2.00x |" in text


def test_arithmetic_has_the_rates_of_the_machine(tmp_path: Path) -> None:
    """0.68 GFLOP in 1 ms beside a convolution of 4.83 GFLOP in 10 ms and a sum of 50.3 MB in 0.5."""
    medians = {"cleaned": 4.0, "csc.fista": 1.0, "peak": 10.0, "memory": 0.5}
    harness.update_csv(tmp_path / "fista.csv", _rows(medians, case=next(iter(cases.CASES))))
    text = report.roofline_table(runs.runs_of(tmp_path / "fista.csv"))
    assert "| 0.68 | 679 | 483 | 141% | 2.84x | 101 |" in text


def test_the_comparison_has_a_line_for_every_network(tmp_path: Path) -> None:
    rows = []
    for mode, medians in (
        ("inference", {"SDNet-18": 8.0, "SDNet-18 compiled": 4.0, "SCN": 100.0}),
        ("training", {"SDNet-18": 20.0, "SDNet-18 bfloat16": 10.0, "SCN": 400.0}),
    ):
        for row in _rows(medians, case="CIFAR comparison, batch 16"):
            peak = 2**21 if (row["contender"], mode) == ("SCN", "training") else ""
            rows.append({**row, "mode": mode, "peak_bytes": peak, "parameters": 694216, "gflop": "3.347"})
    harness.update_csv(tmp_path / "models.csv", rows, (*harness.COLUMNS, "parameters", "gflop"))
    text = report.comparison_table(runs.runs_of(tmp_path / "models.csv"))
    assert "| SDNet-18 | 694,216 | 3.35 | 2000 | 4000 |  | 800 |  | 1600 |  |" in text
    assert "| SCN | 694,216 | 3.35 | 160 |  |  | 40 |  |  | 2 |" in text


def test_a_new_run_replaces_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "fista.csv"
    harness.update_csv(path, _rows({"cleaned": 8.0, "compiled": 6.0}) + _rows({"cleaned": 5.0}, case="b"))
    harness.update_csv(path, _rows({"cleaned": 4.0}))
    kept = {(run.case, row["contender"]): row["p50_ms"] for run in runs.runs_of(path) for row in run.rows}
    assert kept == {("b", "cleaned"): "5.0", ("a", "cleaned"): "4.0"}
    assert list(tmp_path.iterdir()) == [path]


def test_of_several_processes_the_median_counts() -> None:
    rows = [
        {**dict.fromkeys(harness.COLUMNS, ""), "contender": name, "p50_ms": time, "rounds": "4"}
        for name, times in (("cleaned", ("9.0", "10.0", "2.0")), ("csc.fista", ("1.0", "3.0", "2.0")))
        for time in times
    ]
    found = [(row["contender"], row["p50_ms"], row["rounds"]) for row in harness.middle_rows(rows)]
    assert found == [("cleaned", "9.0", 12), ("csc.fista", "2.0", 12)]


def test_rows_are_shown_as_measured_and_as_read_the_fastest_first() -> None:
    measured = _rows({"cleaned": 10.0, "csc.fista": 2.0})
    read = [{name: str(value) for name, value in row.items()} for row in measured]
    for rows in (measured, read):
        with harness.console.capture() as shown:
            harness.show("title", rows)
        assert [line.split()[:2] for line in shown.get().splitlines()[1:]] == [
            ["2.00", "csc.fista"],
            ["10.00", "cleaned"],
        ]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "fista.csv"
    harness.update_csv(path, _rows({"cleaned": 8.0}))
    before = path.read_bytes()

    class Interrupting:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.update_csv(path, [{**_rows({"cleaned": 4.0})[0], "layout": Interrupting()}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interleave_gives_every_contender_the_same_rounds() -> None:
    calls: list[str] = []
    contenders = [harness.Contender(name, "", lambda name=name: calls.append(name)) for name in ("first", "second")]
    harness.interleave(contenders, "test", rounds=4, seconds=0, warm_up=1)
    assert [len(one.times) for one in contenders] == [4, 4]
    timed = calls[2:]
    assert all(set(timed[i : i + 2]) == {"first", "second"} for i in range(0, 8, 2))
