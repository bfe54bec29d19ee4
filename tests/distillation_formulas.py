"""A NumPy float64 transcription of the distillation terms' formulas, with their default weights.

Written with loops over images, classes and positions; nothing is taken from the implementation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import oracle
import softjaccard as sj
from oracle import Array


def cells_of(counted: Array, size: tuple[int, int]) -> Array:
    """The cells (B, h, w) of which at least half of the pixels (B, H, W) count; cells may share rows and columns."""
    (height, width), (rows, columns) = counted.shape[1:], size
    result = np.zeros((len(counted), *size), dtype=bool)
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            result[:, i, j] = counted[:, top:bottom, left:right].mean((1, 2)) >= 0.5
    return result


def resized(values: Array, size: tuple[int, int]) -> Array:
    """Bilinear interpolation of maps (B, D, h, w)."""
    rows, columns = (oracle.axis_matrix(*pair, False) for pair in zip(values.shape[2:], size, strict=True))
    return np.einsum("ih,jw,bdhw->bdij", rows, columns, values)


def log_softmax(values: Array, axis: int) -> Array:
    shifted = values - values.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def divergence(q: Array, p: Array) -> float:
    """KL(q || p) of unnormalised logarithms along the last axis, summed over the others."""
    q, p = log_softmax(q, -1), log_softmax(p, -1)
    return float((np.exp(q) * (q - p)).sum())


def sums_of(student: Array, teacher: Array, counted: Array, temperature: float) -> oracle.Sums:
    """Region statistics at the image's resolution."""
    size = counted.shape[1:]
    student, teacher = (torch.from_numpy(resized(each, size)) for each in (student, teacher))
    label, mask = sj.TeacherLabel(teacher), torch.from_numpy(counted)
    return oracle.statistics(student, label, mask=mask, temperature=temperature)


def kl(student: Array, teacher: Array, counted: Array, temperature: float = 1.0) -> float:
    return oracle.kl_divergence(sums_of(student, teacher, counted, temperature), temperature=temperature)


def jml(
    student: tuple[Array, Array | None],
    teacher: tuple[Array, Array | None],
    counted: Array,
    temperature: float = 1.0,
    classes: str = "present",
    class_threshold: float = 0.01,
) -> float:
    """Of the logits of main and auxiliary heads."""
    sums = sums_of(student[0], teacher[0], counted, temperature)
    region = oracle.tversky(sums, classes=classes, class_threshold=class_threshold)
    heads = [kl(*pair, counted, temperature) for pair in zip(student, teacher, strict=True) if pair[1] is not None]
    return 0.5 * (0.75 * region + 0.25 * np.mean(heads))


def cwd(student: Array, teacher: Array, counted: Array, temperature: float = 4.0) -> float:
    teacher, cells = resized(teacher, student.shape[2:]), cells_of(counted, student.shape[2:])
    images = [n for n in range(len(cells)) if cells[n].any()]
    total = 0.0
    for n in images:
        for c in range(student.shape[1]):
            total += divergence(teacher[n, c][cells[n]] / temperature, student[n, c][cells[n]] / temperature)
    return 3.0 * temperature**2 / (len(images) * student.shape[1]) * total


def dist(student: Array, teacher: Array, counted: Array) -> float:
    teacher, cells = resized(teacher, student.shape[2:]), cells_of(counted, student.shape[2:])
    p, q = (np.exp(log_softmax(np.moveaxis(each, 1, -1)[cells], 1)) for each in (student, teacher))
    over_classes = [np.corrcoef(p[i], q[i])[0, 1] for i in range(len(p))]
    over_cells = [np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(p.shape[1])]
    return 1 - float(np.mean(over_classes)) + 1 - float(np.mean(over_cells))


def skd_pixel(student: Array, teacher: Array, counted: Array) -> float:
    teacher, cells = resized(teacher, student.shape[2:]), cells_of(counted, student.shape[2:])
    total = 0.0
    for n in range(len(student)):
        p, q = (log_softmax(each[n][:, cells[n]], 0) for each in (student, teacher))
        total += -(np.exp(q) * p).sum() / max(cells[n].sum(), 1)
    return 10.0 * total


def quarters(features: Array, cells: Array) -> list[Array]:
    """Of one image (D, h, w): the maximum over the cells that count of each quarter that has one."""
    height, width = -(-cells.shape[0] // 2), -(-cells.shape[1] // 2)
    parts = [
        (slice(i, i + height), slice(j, j + width))
        for i in range(0, cells.shape[0], height)
        for j in range(0, cells.shape[1], width)
    ]
    return [features[(slice(None), *part)][:, cells[part]].max(1) for part in parts if cells[part].any()]


def skd_pair(student: Array, teacher: Array, counted: Array, lengths_of: Array | None = None) -> float:
    """`lengths_of`: the student's features whose lengths divide, because these are constants for the gradient."""
    teacher, cells = resized(teacher, student.shape[2:]), cells_of(counted, student.shape[2:])
    images = [n for n in range(len(cells)) if cells[n].any()]
    total = 0.0
    for n in images:
        cosines = []
        for features, lengths in ((student, student if lengths_of is None else lengths_of), (teacher, teacher)):
            vectors, measured = quarters(features[n], cells[n]), quarters(lengths[n], cells[n])
            units = np.stack([v / np.linalg.norm(m) for v, m in zip(vectors, measured, strict=True)])
            cosines.append(units @ units.T)
        total += ((cosines[1] - cosines[0]) ** 2).mean()
    return 0.5 * total / len(images)


def cirkd(student: Array, teacher: Array, counted: Array, temperature: float = 0.1) -> float:
    teacher, cells = resized(teacher, student.shape[2:]), cells_of(counted, student.shape[2:])
    return cirkd_of_cells(student, teacher, cells, temperature)


def cirkd_of_cells(student: Array, teacher: Array, cells: Array, temperature: float = 0.1) -> float:
    images = [n for n in range(len(cells)) if cells[n].any()]

    def vectors(features: Array, n: int) -> Array:
        rows = features[n][:, cells[n]].T
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    total = 0.0
    for m in images:
        for n in images:
            for i in range(cells[m].sum()):
                similar = [vectors(each, n) @ vectors(each, m)[i] / temperature for each in (teacher, student)]
                total += divergence(*similar) / cells[m].sum()
    return total / len(images) ** 2


def slope(formula: Callable[[Array], float], at: Array, along: Array) -> float:
    """The derivative of a formula along a direction, by central differences."""
    step = 1e-5
    return (formula(at + step * along) - formula(at - step * along)) / (2 * step)
