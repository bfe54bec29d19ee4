"""The scores written out from their definitions in NumPy float64, one image, class and pixel set at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

Array = np.ndarray


def pixel_sets(predictions: Array, label: Array, kept: Array, num_classes: int) -> list[list[tuple[int, int, int]]]:
    """tp, fp, fn of every image and class, counted pixel by pixel."""
    table = []
    for predicted, labelled, counted in zip(predictions, label, kept, strict=True):
        row = [[0, 0, 0] for _ in range(num_classes)]
        for p, y, k in zip(
            predicted.ravel().tolist(), labelled.ravel().tolist(), counted.ravel().tolist(), strict=True
        ):
            if not k:
                continue
            if p == y:
                row[y][0] += 1
            else:
                row[p][1] += 1
                row[y][2] += 1
        table.append([tuple(cell) for cell in row])
    return table


def score_of(family: str, tp: int, fp: int, fn: int) -> float:
    """One class's score; 1 where there is nothing to get wrong."""
    over, under = {"Acc": (tp, tp + fn), "IoU": (tp, tp + fp + fn), "Dice": (2 * tp, 2 * tp + fp + fn)}[family]
    return over / under if under else 1.0


def mean(values: list[float]) -> float:
    return float(np.mean(np.array(values, dtype=np.float64))) if values else 0.0


def lowest(values: list[float], quantile: float) -> float:
    """Mean of the lowest max(1, floor(q % n)) values."""
    count = max(1, math.floor(len(values) * quantile / 100))
    return mean(sorted(values)[:count])


def is_active(
    cell: tuple[int, int, int],
    image: list[tuple[int, int, int]],
    c: int,
    rule: Any,
    binary: bool,
    per: str,
    family: str,
) -> bool:
    tp, fp, fn = cell
    if sum(tp + fn for tp, _, fn in image) == 0:
        return False
    label, predicted = tp + fn > 0, tp + fp > 0
    if family == "Acc" and not label:
        return False
    if binary:
        return c == 1 and (per == "I" or label or predicted)
    if rule is None:
        rule = "either" if per == "D" else "present"
    if rule == "present":
        return label
    if rule == "predicted":
        return predicted
    if rule == "either":
        return label or predicted
    return True if rule == "all" else c in rule


def scores(
    table: list[list[tuple[int, int, int]]],
    rule: Any = None,
    binary: bool = False,
    quantiles: tuple[float, ...] = (1, 5),
) -> dict[str, Any]:
    """All scores of a table, by name."""
    num_classes = len(table[0])
    pooled = [tuple(sum(image[c][k] for image in table) for k in range(3)) for c in range(num_classes)]
    result: dict[str, Any] = {
        "Acc": sum(tp for tp, _, _ in pooled) / max(1, sum(tp + fn for tp, _, fn in pooled)),
    }
    deciles = [10 * step for step in range(1, 11)]
    for family in ("Acc", "IoU", "Dice"):
        in_pool = {
            c: score_of(family, *pooled[c])
            for c in range(num_classes)
            if is_active(pooled[c], pooled, c, rule, binary, "D", family)
        }
        result[f"m{family}_D"] = mean(list(in_pool.values()))
        result[f"{family}_D"] = [in_pool.get(c, 0.0) for c in range(num_classes)]
        by_image: list[list[float]] = [[] for _ in table]
        by_class: list[list[float]] = [[] for _ in range(num_classes)]
        for (i, image), c in itertools.product(enumerate(table), range(num_classes)):
            if is_active(image[c], image, c, rule, binary, "I", family):
                by_image[i].append(score_of(family, *image[c]))
            if is_active(image[c], image, c, rule, binary, "C", family):
                by_class[c].append(score_of(family, *image[c]))
        images = [mean(values) for values in by_image if values]
        classes = [values for values in by_class if values]
        result[f"m{family}_I"] = mean(images)
        result[f"m{family}_C"] = mean([mean(values) for values in classes])
        result[f"{family}_C"] = [mean(values) for values in by_class]

        def worst(q: float, images: list[float] = images, classes: list[list[float]] = classes) -> tuple[float, float]:
            return lowest(images, q) if images else 0.0, mean([lowest(values, q) for values in classes])

        for q in quantiles:
            result[f"m{family}_I_worst{q:g}"], result[f"m{family}_C_worst{q:g}"] = worst(q)
        of_deciles = [worst(q) for q in deciles]
        result[f"m{family}_I_worst_mean"] = mean([image for image, _ in of_deciles])
        result[f"m{family}_C_worst_mean"] = mean([c for _, c in of_deciles])
        if family == "IoU":
            result["active_D"] = [c in in_pool for c in range(num_classes)]
            result["active_C"] = [bool(values) for values in by_class]
    return result


def boundary_table(
    predictions: Array, label: Array, kept: Array, num_classes: int, width: int
) -> list[list[tuple[int, int, int]]]:
    """tp, fp, fn of the boundary bands: every pixel's window is looked at on its own."""

    def band(ids: Array, counted: Array, c: int) -> set[tuple[int, ...]]:
        found = set()
        for place in np.ndindex(ids.shape):
            if not counted[place] or ids[place] != c:
                continue
            window = tuple(slice(max(0, x - width), x + width + 1) for x in place)
            if (counted[window] & (ids[window] != c)).any():
                found.add(place)
        return found

    table = []
    for p, y, k in zip(predictions, label, kept, strict=True):
        row = []
        for c in range(num_classes):
            predicted, labelled = band(p, k, c), band(y, k, c)
            row.append((len(predicted & labelled), len(predicted - labelled), len(labelled - predicted)))
        table.append(row)
    return table
