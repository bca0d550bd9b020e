"""The command csc-kernels."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from . import doctor, resources
from .parity import Check
from .version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="csc-kernels", description="Convolutional sparse coding kernels.")
    parser.add_argument("--version", action="version", version=f"csc-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    examine = commands.add_parser(
        "doctor",
        help="what runs on this machine and whether it is right",
        description="Show what runs on this machine and why the rest does not, and hold every backend "
        "against float64. Exit code 0 when all agree, 1 when one does not.",
    )
    examine.add_argument("--json", action="store_true", help="print one JSON document instead")
    table = commands.add_parser(
        "resources",
        help="registers, shared memory and tensor core instructions of every GPU kernel",
        description="Print docs/resources.csv. Exit code 0, or 1 when a kernel is not as it should be.",
    )
    table.add_argument("--write", action="store_true", help="measure the kernels again, which takes minutes")
    options = parser.parse_args(arguments)
    return _resources(options.write) if options.command == "resources" else _doctor(options.json)


def _resources(write: bool) -> int:
    try:
        wrong = resources.regenerate() if write else []
        print("\n".join(resources.lines()))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


def _doctor(as_json: bool) -> int:
    try:
        report = doctor.collect()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(asdict(report), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(report)))
    return 0 if report.ok else 1


def lines(report: doctor.Report) -> Iterator[str]:
    """The report for people."""
    yield ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"{report.platform}; {report.cpu}, {report.threads} threads"
    yield ""
    yield "backends"
    for name, reason in report.backends.items():
        yield f"  {name:10} " + ("available" if reason is None else f"not available: {reason}")
    if report.native:
        variants = ", ".join(report.native["isa_available"])
        yield f"native library: {report.native['compiler']}; kernels: {report.native['isa']}, runs {variants}"
    yield ""
    yield "parity with float64 (worst error as a share of what is allowed)"
    partly: list[Check] = []
    for (backend, isa, dtype), group in groupby(sorted(report.checks, key=_kind), key=_kind):
        checks = list(group)
        yield f"  {backend:10} {isa:9} {dtype:9} {_summary(checks)}"
        if any(check.status != "not served" for check in checks):
            partly += checks
    for reason in dict.fromkeys(check.detail for check in partly if check.status == "not served"):
        yield f"  not served: {reason}"
    for check in report.checks:
        if check.status == "failed":
            yield f"  FAILED {_describe(check)}"
    yield ""
    speed = report.speed
    yield f"speed: {speed.case}"
    yield (
        f"  {speed.backend} {speed.csc_ms:.2f} ms, plain PyTorch {speed.pytorch_ms:.2f} ms: "
        f"{speed.pytorch_ms / speed.csc_ms:.1f}x"
    )
    yield ""
    failed = sum(check.status == "failed" for check in report.checks)
    checked = f"{sum(check.status != 'not served' for check in report.checks)} checks"
    yield f"{failed} of {checked} failed" if failed else f"every backend agrees with float64 ({checked})"


def _kind(check: Check) -> tuple[str, str, str]:
    return check.backend, check.isa or "", check.dtype


def _summary(checks: Sequence[Check]) -> str:
    served = [check for check in checks if check.status != "not served"]
    if not served:
        return f"not served: {checks[0].detail}"
    failed = sum(check.status == "failed" for check in served)
    shares = [check.share for check in served if check.share is not None]
    worst = f"worst {max(shares):.2f}, " if shares else ""
    missing = f", {len(checks) - len(served)} not served" if len(served) < len(checks) else ""
    return f"{len(served):4} checks, {worst}" + (f"{failed} FAILED" if failed else "ok") + missing


def _describe(check: Check) -> str:
    where = " ".join(filter(None, (check.backend, check.isa, check.dtype)))
    found = check.detail or f"{check.share:.3g} of the allowed error"
    return f"{where}: {check.op}, {check.case}, {check.tensor}: {found}"
