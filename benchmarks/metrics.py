"""Measure the metrics' updates on this machine's CPU: a table of ratios, and JSON beside it.

Times are medians over repetitions in which all functions of a case take turns, so that a busy machine slows them down
alike; each is divided by those of plain torch operations on the same pixels. ``python benchmarks/metrics.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from softjaccard.metrics import FineGrainedIoU

HERE = Path(__file__).parent
REPETITIONS = 31
#: A function, and the plain operations it is compared with, by name.
Case = tuple[Callable[[], object], dict[str, Callable[[], object]]]


def _maps(num_classes: int, size: tuple[int, int], block: int, ignored: float) -> tuple[Tensor, Tensor]:
    """Predicted ids and label of one image of square regions; a fifth of the pixels is predicted at random."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(num_classes, (1, size[0] // block, size[1] // block), generator=generator)
    label = regions.repeat_interleave(block, 1).repeat_interleave(block, 2)
    wrong = torch.rand(label.shape, generator=generator) < 0.2
    ids = torch.where(wrong, torch.randint(num_classes, label.shape, generator=generator), label)
    return ids, label.masked_fill(torch.rand(label.shape, generator=generator) < ignored, -100)


def _fine_grained_iou(block: int, ignored: float) -> Case:
    num_classes = 19
    ids, label = _maps(num_classes, (1024, 2048), block, ignored)
    metric = FineGrainedIoU(num_classes)
    kept = label != -100
    rows = torch.where(kept, label, num_classes).flatten()
    cells = torch.where(kept, label * num_classes + ids, num_classes**2).flatten()

    def update() -> None:
        metric.reset()
        metric.update(ids, label, image_ids=[0])

    def usual() -> Tensor:
        """The index of the cell, made from the maps as they come, and its bincount; without checks of the values."""
        counted = label != -100
        return torch.bincount(label[counted] * num_classes + ids[counted], minlength=num_classes**2)

    return update, {
        "bincount of label x prediction": lambda: torch.bincount(cells, minlength=num_classes**2 + 1),
        "bincount of label": lambda: torch.bincount(rows, minlength=num_classes + 1),
        "index of label x prediction and its bincount": usual,
    }


SHAPE = "19 classes, 1024 x 2048, int64 class maps"
CASES: dict[str, Callable[[], Case]] = {
    f"`FineGrainedIoU.update`, {SHAPE}, regions of 32 x 32, 10 % ignored": lambda: _fine_grained_iou(32, 0.1),
    f"`FineGrainedIoU.update`, {SHAPE}, each pixel at random, none ignored": lambda: _fine_grained_iou(1, 0.0),
}


def measure(name: str) -> list[dict[str, object]]:
    """A result for each plain operation that the case is compared with."""
    function, others = CASES[name]()
    functions = {"": function, **others}
    seconds: dict[str, list[float]] = {key: [] for key in functions}
    for repetition in range(REPETITIONS + 1):
        for key, call in functions.items():
            start = time.perf_counter()
            call()
            if repetition:  # the first time warms up
                seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return [
        {
            "case": name,
            "seconds": medians[""],
            "reference": key,
            "reference_seconds": medians[key],
            "time_ratio": medians[""] / medians[key],
        }
        for key in others
    ]


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


def table(results: list[dict[str, object]]) -> str:
    """The results as Markdown."""
    rows = ["| metric | ms | compared with | time ratio |", "|---|---:|---|---:|"]
    for result in results:
        milliseconds = 1000 * float(str(result["seconds"]))
        rows.append(f"| {result['case']} | {milliseconds:.1f} | {result['reference']} | {result['time_ratio']:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=HERE / "results" / "metrics-cpu.json", help="where the JSON goes"
    )
    output = parser.parse_args().output
    machine = describe_machine()
    results = [result for name in CASES for result in measure(name)]
    temporary = output.with_suffix(".part")
    temporary.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    temporary.replace(output)
    print(table(results))


if __name__ == "__main__":
    main()
