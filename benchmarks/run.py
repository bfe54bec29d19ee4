"""Measure speed and memory of the losses on this machine's CPU: a table of ratios, and JSON beside it.

``make bench`` runs every case of ``benchmarks/case.py`` in a process of its own. Times are medians of 5 steps (forward
and backward), divided by torch's cross-entropy timed in turn with them; memory is the peak of resident memory above
the inputs, median of 5, divided by the size of the logits (their gradient alone is 1.0).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from case import CASES

HERE = Path(__file__).parent
SHAPES = ([2, 19, 512, 1024], [1, 150, 512, 512])


def describe_machine() -> dict[str, object]:
    """What the figures depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def measure(case: str, shape: list[int]) -> dict[str, object]:
    """The result of one case in a process of its own."""
    command = [sys.executable, str(HERE / "case.py"), case, *map(str, shape)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(results: list[dict[str, object]]) -> str:
    """The results as Markdown."""
    rows = ["| float32 logits | loss | time / CE | peak memory / logits |", "|---|---|---:|---:|"]
    for result in results:
        shape = "(" + ", ".join(map(str, result["shape"])) + ")"
        name = CASES[result["case"]][0]
        rows.append(f"| {shape} | {name} | {result['time_ratio']:.2f} | {result['peak_ratio']:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "cpu.json", help="where the JSON goes")
    output = parser.parse_args().output
    machine, results = describe_machine(), []
    for shape in SHAPES:
        for case in CASES:
            results.append(measure(case, shape))
            print(f"{shape} {case}: {results[-1]['seconds']:.3f} s", file=sys.stderr, flush=True)
    temporary = output.with_suffix(".part")
    temporary.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    temporary.replace(output)
    print(table(results))


if __name__ == "__main__":
    main()
