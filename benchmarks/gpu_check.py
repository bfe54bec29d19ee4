"""Check, time and weigh the triton backend on a GPU: ``python -m benchmarks.gpu_check [FOLDER]``.

One run of limited time, the most important first, written after each result. Parts: ``check`` compares values and
gradients with float64, ``targets`` measures the triton backend and cross-entropy, ``others`` the other losses and the
metrics, ``compiled`` the reference under torch.compile. The file is that of ``python -m benchmarks --device cuda``,
with the checks, and with the time at stride 1 as a multiple of its floor: to read the logits twice and to write their
gradient, as fast as a large tensor is copied. --dry-run goes through all of it in triton's interpreter, on any machine,
with tiny tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import QUICK_BUDGET, run_process
from benchmarks.checks import CHECKS, tiny_checks
from benchmarks.inputs import DTYPES
from benchmarks.losses import BASELINE, LossCase
from benchmarks.machine import ROOT, describe_machine, load_average, result_name
from benchmarks.measure import median_seconds
from benchmarks.report import Result, report, targets_of
from benchmarks.selection import Case, select
from softjaccard.files import write_text

PARTS = ("check", "targets", "others", "compiled")
_PART_OF = {"triton": "targets", BASELINE: "targets", "compiled": "compiled"}
#: Seconds for which a case is timed, unless three rounds take longer.
_BUDGET = 1.0
_TINY = (1, 5, 8, 16)


def part_of(case: Case) -> str:
    """The part in which a loss or metric is measured."""
    return _PART_OF.get(case.name.split("/")[0], "others")


def ordered_cases(dry_run: bool) -> list[Case]:
    """The benchmark's cases for a GPU, by part, and in each part hard labels and float32 first."""
    cases = select("cuda", everything=False)
    if dry_run:
        cases = list(dict.fromkeys(replace(case, shape=_TINY) for case in cases if isinstance(case, LossCase)))
    return sorted(cases, key=lambda case: (PARTS.index(part_of(case)), not case.name.endswith("/hard/float32")))


def measure_until(cases: list[Case], device: str, budget: float, end: float) -> Iterator[Result]:
    """The results until the time ``end``, each as soon as it is there.

    After a failure the rest gets a new process: an error on the GPU spoils the one that it happened in.
    """
    done = 0
    while done < len(cases) and time.monotonic() < end:
        with closing(run_process(cases[done:], device, budget)) as results:
            for result in results:
                done += 1
                yield result
                if "failed" in result or time.monotonic() >= end:
                    break


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written each second when a large tensor is copied."""
    size = 2**30 if device.type == "cuda" else 2**20
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    target.copy_(source)
    return 2 * size / median_seconds({"copy": lambda: target.copy_(source)}, device, _BUDGET)["copy"]


def floor_ratio(result: Result, bandwidth: float) -> float:
    """The time of a loss at the logits' own resolution, divided by that of moving what it has to."""
    moved = 5 if result["label"] == "teacher" else 3  # a teacher's logits are read twice as well
    return float(result["seconds"] / (moved * prod(result["shape"]) * DTYPES[result["dtype"]].itemsize / bandwidth))


def figures(result: Result) -> str:
    """What came out, and the targets that are met or not."""
    if "passed" in result:
        return "passed" if result["passed"] else f"NOT PASSED: {json.dumps(result)}"
    if "seconds" not in result:
        return f"FAILED: {result['failed']}" if "failed" in result else f"skipped: {result['skipped']}"
    said = [f"{1000 * result['seconds']:.3f} ms"]
    if "loss" in result:
        ratios = ("time_ratio", "peak_ratio", "floor_ratio")
        said += [f"{ratio.split('_')[0]} {result[ratio]:.3f}" for ratio in ratios if result.get(ratio) is not None]
    return ", ".join(filter(None, [*said, targets_of(result, "cuda")]))


def summary(checks: list[Case], cases: list[Case], written: dict[str, Any], device: str) -> str:
    """The table, what did not pass, and each target that is met or not."""
    checked, results = written["checks"], written["results"]
    failed = [(case, result) for case, result in zip(checks, checked, strict=False) if not result.get("passed")]
    targets = [(case, result) for case, result in zip(cases, results, strict=False) if targets_of(result, "cuda")]
    lines = [f"{case.name}: {figures(result)}" for case, result in failed + targets]
    lines.append(
        f"{len(checked) - len(failed)} of {len(checked)} checks passed, {len(checks) - len(checked)} not begun"
    )
    lines.append(f"{len(results)} of {len(cases)} cases measured")
    return "\n".join([report(results, device, written["machine"]), "", *lines])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = Path(os.environ.get("OUT", ROOT / "benchmarks" / "results"))
    parser.add_argument(
        "folder", type=Path, nargs="?", default=folder, help="for the JSON (default: $OUT, or %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so many (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="tiny tensors in triton's interpreter, on the CPU")
    return parser


def main() -> int:
    """Run the command; 1 if a check did not pass or a case failed."""
    begin = time.monotonic()
    parser = _parser()
    arguments = parser.parse_args()
    dry_run, device = arguments.dry_run, "cpu" if arguments.dry_run else "cuda"
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # for the processes that measure
    elif not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --dry-run goes through everything without one")
    machine = describe_machine(device) | {"load_before": load_average()}
    bandwidth = machine["copy_bandwidth"] = copy_bandwidth(torch.device(device))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"{'gpu-dry-run' if dry_run else result_name(machine)}.json"
    written: dict[str, Any] = {"machine": machine, "checks": [], "results": []}

    def measure(cases: list[Case], into: list[Result], end: float) -> None:
        results = measure_until(cases, device, QUICK_BUDGET if dry_run else _BUDGET, end)
        for case, result in zip(cases, results, strict=False):
            if "loss" in result and result["stride"] == 1 and "seconds" in result:
                result["floor_ratio"] = floor_ratio(result, bandwidth)
            into.append(result)
            machine["minutes"] = round((time.monotonic() - begin) / 60, 1)
            write_text(path, json.dumps(written, indent=1) + "\n")
            print(f"{time.monotonic() - begin:5.0f} s  {case.name}: {figures(result)}", flush=True)

    checks: list[Case] = list(tiny_checks() if dry_run else CHECKS) if "check" in arguments.parts else []
    cases = [case for case in ordered_cases(dry_run) if part_of(case) in arguments.parts]
    seconds = 60 * arguments.minutes
    measure(checks, written["checks"], begin + (seconds / 3 if cases else seconds))
    measure(cases, written["results"], begin + seconds)

    machine["load_after"] = load_average()
    write_text(path, json.dumps(written, indent=1) + "\n")
    print(summary(checks, cases, written, device))
    passed = all(result.get("passed") for result in written["checks"])
    return int(not passed or any("failed" in result for result in written["results"]))


if __name__ == "__main__":
    sys.exit(main())
