"""Measure speed and memory of losses and metrics: a table, JSON, and two pictures.

Every loss runs forward and backward, beside torch's cross-entropy in the same process; on the CPU each case has a
process of its own, on a GPU each combination of shape, stride, label and dtype. Labels are drawn: some twelve classes
in an image, in smooth regions, so that some 8 % of the pixels lie at a boundary; logits are noise that agrees with
them. Without --cases and --quick, results go to benchmarks/results/ and pictures to docs/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile

import torch

from benchmarks.losses import LossCase
from benchmarks.machine import ROOT, describe_machine, load_average, result_name
from benchmarks.report import Result, report
from benchmarks.selection import Case, matching, select, select_quick
from softjaccard.files import write_text

#: Seconds for which a case is timed, unless three rounds take longer.
BUDGET = 3.0
QUICK_BUDGET = 0.05


def _setting(case: Case) -> object:
    """What the cases of one process share on a GPU, where torch counts the memory itself."""
    return (case.shape, case.stride, case.label, case.dtype) if isinstance(case, LossCase) else case


def run(cases: list[Case], device: str, budget: float) -> Iterator[Result]:
    """The results, in order, each as soon as its process has ended."""
    key = _setting if device == "cuda" else (lambda case: case)
    for _, group in groupby(cases, key):
        yield from run_process(list(group), device, budget)


def run_process(cases: list[Case], device: str, budget: float) -> Generator[Result, None, None]:
    """The results of one process, each as soon as it is there; if it dies, its remaining cases have failed."""
    specification = json.dumps([asdict(case) for case in cases])
    command = [sys.executable, "-m", "benchmarks.worker", device, str(budget), specification]
    done = 0
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            for line in process.stdout or ():
                done += 1
                yield json.loads(line)
            process.wait()
        finally:
            process.kill()  # where nobody wants the rest
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            reason = f"the process ended with code {process.returncode}: {last}"
            yield from ({**asdict(case), "failed": reason} for case in cases[done:])


def _measure(cases: list[Case], device: str, budget: float, machine: dict[str, object]) -> list[Result]:
    """The results, each told when it is there; adds to the machine's description how busy it was and for how long."""
    machine["load_before"], begin = load_average(), time.monotonic()
    results = []
    for case, result in zip(cases, run(cases, device, budget), strict=True):
        found = f"{result['seconds']:.4g} s" if "seconds" in result else result.get("failed") or result["skipped"]
        print(f"{time.monotonic() - begin:5.0f} s  {case.name}: {found}", file=sys.stderr, flush=True)
        results.append(result)
    machine |= {"load_after": load_average(), "minutes": round((time.monotonic() - begin) / 60, 1)}
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="PATTERN",
        help="only cases whose names match, such as 'chunked/*' or '*/2x150x*/stride4/hard/*'; see --list",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every shape, stride, label, dtype and loss; takes hours")
    which.add_argument("--quick", action="store_true", help="tiny images, to see that everything works")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and end")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="where the pictures go")
    return parser


def main() -> int:
    """Run the command; 1 if a case failed."""
    parser = _parser()
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    cases = select_quick(device) if arguments.quick else select(device, everything=arguments.all)
    if arguments.cases:
        cases = matching(cases, arguments.cases)
        if not cases:
            parser.error(f"--cases: nothing matches {' '.join(arguments.cases)}; --list shows the names")
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    machine = describe_machine(device)
    output, plots = arguments.output, arguments.plots
    if not (arguments.cases or arguments.quick):  # a complete run
        output = output or ROOT / "benchmarks" / "results" / f"{result_name(machine)}.json"
        plots = plots or ROOT / "docs"

    results = _measure(cases, device, QUICK_BUDGET if arguments.quick else BUDGET, machine)
    if output:
        write_text(output, json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    if plots:
        from benchmarks.plots import draw_plots

        draw_plots(plots, results, device, str(machine.get("gpu", machine["cpu"])))
    print(report(results, device, machine))
    return int(any("failed" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
