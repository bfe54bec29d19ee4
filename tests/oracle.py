"""A NumPy float64 transcription of the definitions: labels, statistics, losses, gradients; and the cases to try.

Nothing here is taken from the implementation, and no automatic differentiation is used: losses are differentiated by
the statistics with complex steps, and the statistics by the logits with the formulas written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softjaccard as sj

FIELDS = (
    "prediction",
    "label",
    "overlap",
    "cross_entropy",
    "product",
    "prediction_square",
    "label_square",
    "label_entropy",
    "prediction_peak",
    "label_peak",
    "pixels",
)
DIFFERENTIABLE = ("prediction", "overlap", "cross_entropy", "product", "prediction_square")
FORMS = ("metric", "metric2", "product")
# what the usual losses want; a backend may have a shorter way for it
USUAL = (
    "prediction",
    "label",
    "overlap",
    "cross_entropy",
    "product",
    "label_square",
    "label_entropy",
    "label_peak",
    "pixels",
)
Array = np.ndarray
Sums = dict[str, Array]


def array(values: Tensor) -> Array:
    """A float64 array; integers survive exactly, float16 and bfloat16 are widened."""
    return values.detach().cpu().to(torch.float64).numpy()


def axis_matrix(source: int, target: int, align_corners: bool) -> Array:
    """The weights (target, source) of linear interpolation along one axis, from its definition."""
    matrix = np.zeros((target, source))
    for i in range(target):
        if align_corners:
            x = i * (source - 1) / (target - 1) if target > 1 else 0.0
        else:
            x = max((i + 0.5) * source / target - 0.5, 0.0)
        low = min(int(np.floor(x + 1e-12)), source - 1)
        high = min(low + 1, source - 1)
        matrix[i, low] += 1 - (x - low)
        matrix[i, high] += x - low
    return matrix


# --- labels ---------------------------------------------------------------------------------------


def softmax(values: Array) -> Array:
    """Softmax over axis 1."""
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(values: Array) -> Array:
    """The logistic function without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def one_hot(index: Array, classes: int) -> Array:
    """(B, *spatial) ids to (B, classes, *spatial); one class means the ids are 0/1 themselves."""
    if classes == 1:
        return (index == 1)[:, None].astype(float)
    return np.stack([index == c for c in range(classes)], axis=1).astype(float)


def dense_label(
    label: Any,
    shape: Sequence[int],
    ignore_index: int = -100,
    activation: str | None = "softmax",
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """Label and counted elements, both of the shape (B, C, *spatial) of the logits."""
    classes = shape[1]
    everywhere = np.ones(shape, dtype=bool)
    if isinstance(label, sj.SmoothedLabel):
        hard, counted = dense_label(label.index, shape, ignore_index, activation)
        binary = classes == 1 or label.index.ndim == len(shape)
        smooth = (1 - label.epsilon) * hard + label.epsilon / (2 if binary else classes)
        if label.where is None:
            return smooth, counted
        where = label.where.numpy()
        return np.where(where if where.ndim == len(shape) else where[:, None], smooth, hard), counted
    if isinstance(label, sj.TeacherLabel):
        scaled = array(label.logits) / (temperature if label.temperature is None else label.temperature)
        multiclass = activation == "softmax" or (activation is None and classes > 1)
        return (softmax(scaled) if multiclass else sigmoid(scaled)), everywhere
    if isinstance(label, sj.RaterLabel):
        votes = array(label.votes)
        batch, raters = votes.shape[:2]
        weights = (
            np.ones((batch, raters))
            if label.weights is None
            else np.broadcast_to(array(label.weights), (batch, raters))
        )
        count, total = np.zeros(shape), np.zeros((batch, *votes.shape[2:]))
        for b in range(batch):
            for r in range(raters):
                valid = votes[b, r] != ignore_index
                total[b] += weights[b, r] * valid
                count[b] += weights[b, r] * valid * one_hot(votes[b : b + 1, r], classes)[0]
        counted = np.broadcast_to((total > 0)[:, None], shape)
        return np.divide(count, total[:, None], out=np.zeros(shape), where=counted), counted
    values = array(label)
    if label.is_floating_point():
        return values, everywhere
    if values.ndim == len(shape):
        return (values == 1).astype(float), values != ignore_index
    counted = np.broadcast_to((values != ignore_index)[:, None], shape)
    return one_hot(values, classes) * counted, counted


def weights_of(mask: Tensor | None, shape: Sequence[int]) -> Array:
    """The weights of all elements, (B, C, *spatial)."""
    if mask is None:
        return np.ones(shape)
    weights = array(mask)
    return np.broadcast_to(weights if weights.ndim == len(shape) else weights[:, None], shape)


# --- region statistics ----------------------------------------------------------------------------


@dataclass
class Pixels:
    """What the sums run over: predictions p, labels y, weights w, all (B, C, *spatial); where ignored w is 0."""

    p: Array
    y: Array
    w: Array
    logits: Array
    activation: str | None
    temperature: float


def pixels_of(
    logits: Tensor,
    label: Any,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    activation: str | None = "softmax",
    temperature: float = 1.0,
) -> Pixels:
    """Everything at full resolution, in float64."""
    shape = tuple(logits.shape)
    y, counted = dense_label(label, shape, ignore_index, activation, temperature)
    w = np.where(counted, weights_of(mask, shape), 0.0)
    x = np.where(w > 0, array(logits), 0.5)
    y = np.where(w > 0, y, 0.5)
    p = {"softmax": lambda: softmax(x / temperature), "sigmoid": lambda: sigmoid(x / temperature), None: lambda: x}[
        activation
    ]()
    return Pixels(p, y, w, x, activation, temperature)


def xlogy(x: Array, y: Array) -> Array:
    """x log y, 0 at x = 0."""
    return np.where(x > 0, x, 0) * np.log(np.where(x > 0, y, 1))


def log_predictions(pixels: Pixels) -> tuple[Array, Array]:
    """log p and log(1 - p), from the logits (no cancellation)."""
    x = pixels.logits / pixels.temperature
    if pixels.activation == "softmax":
        top = x - x.max(axis=1, keepdims=True)
        return top - np.log(np.exp(top).sum(axis=1, keepdims=True)), np.zeros_like(x)
    if pixels.activation == "sigmoid":
        return -np.logaddexp(0, -x), -np.logaddexp(0, x)
    return np.log(np.maximum(pixels.p, 1e-12)), np.log(np.maximum(1 - pixels.p, 1e-12))


def sums(pixels: Pixels) -> Sums:
    """The table of region statistics, each (B, C), and `pixels` broadcast to (B, C)."""
    p, y, w = pixels.p, pixels.y, pixels.w
    log_p, log_not_p = log_predictions(pixels)
    binary = pixels.activation == "sigmoid" or p.shape[1] == 1
    cross_entropy = np.where(y > 0, -y * np.where(y > 0, log_p, 0), 0) - (
        np.where(y < 1, (1 - y) * log_not_p, 0) if binary else 0
    )
    entropy = -xlogy(y, y) - (xlogy(1 - y, 1 - y) if binary else 0)
    axes = tuple(range(2, p.ndim))
    terms = {
        "prediction": p,
        "label": y,
        "overlap": np.minimum(p, y),
        "cross_entropy": cross_entropy,
        "product": p * y,
        "prediction_square": p**2,
        "label_square": y**2,
        "label_entropy": entropy,
        "pixels": np.ones_like(p),
    }
    result = {name: (w * term).sum(axis=axes) for name, term in terms.items()}
    for name, values in (("prediction_peak", p), ("label_peak", y)):
        result[name] = np.where(w > 0, values, 0).max(axis=axes, initial=0)
    return result


def statistics(logits: Tensor, label: Any, **options: Any) -> Sums:
    """Region statistics straight from the arguments of `region_statistics`."""
    return sums(pixels_of(logits, label, **options))


def pull_back(pixels: Pixels, upstream: Mapping[str, Array], gradient: str = "exact") -> Array:
    """Gradient of Σ upstream·statistics with respect to the logits."""
    p, y, w, activation = pixels.p, pixels.y, pixels.w, pixels.activation
    spread = {name: values.reshape(*values.shape, *[1] * (p.ndim - 2)) for name, values in upstream.items()}
    none = np.zeros((*p.shape[:2], *[1] * (p.ndim - 2)))
    by_p = w * (
        spread.get("prediction", none)
        + spread.get("overlap", none) * (np.where(p < y, 1.0, 0.0) + np.where(p == y, 0.5, 0.0))
        + spread.get("product", none) * y
        + spread.get("prediction_square", none) * 2 * p
    )
    if gradient == "error_scaled":
        by_p = by_p * np.abs(p - y)
    entropy = spread.get("cross_entropy", none) * w
    if activation == "softmax":
        region = p * (by_p - (by_p * p).sum(axis=1, keepdims=True))
        weighted = entropy * y
        return (region + p * weighted.sum(axis=1, keepdims=True) - weighted) / pixels.temperature
    if activation == "sigmoid":
        return (p * (1 - p) * by_p + entropy * (p - y)) / pixels.temperature
    opposite = np.where(1 - p >= 1e-12, (1 - y) / np.maximum(1 - p, 1e-12), 0) if p.shape[1] == 1 else 0
    return by_p - entropy * (np.where(p >= 1e-12, y / np.maximum(p, 1e-12), 0) - opposite)


# --- losses ---------------------------------------------------------------------------------------


def reduce_classes(values: Array, active: Array, per: str, class_weight: Array | None = None) -> Any:
    """The mean over active entries in plain loops; `values` and `active` are (N, C)."""
    images, classes = values.shape
    weight = np.ones(classes) if class_weight is None else class_weight
    if per == "class":
        total, norm = 0.0, 0.0
        for c in range(classes):
            chosen = [values[n, c] for n in range(images) if active[n, c]]
            if chosen:
                total, norm = total + weight[c] * sum(chosen) / len(chosen), norm + weight[c]
        return total / norm if norm else 0.0
    means = []
    for n in range(images):
        chosen_classes = [c for c in range(classes) if active[n, c]]
        if chosen_classes:
            norm = sum(weight[c] for c in chosen_classes)
            means.append(sum(weight[c] * values[n, c] for c in chosen_classes) / norm)
    return sum(means) / len(means) if means else 0.0


def total(stats: Sums) -> Sums:
    """Sums over the images (maxima for the peaks), (1, C)."""
    return {
        n: v.max(axis=0, keepdims=True) if n.endswith("peak") else v.sum(axis=0, keepdims=True)
        for n, v in stats.items()
    }


def active_classes(stats: Sums, classes: str | Sequence[int], threshold: float) -> Array:
    """Which entries enter the mean, (N, C)."""
    present, predicted = stats["label_peak"].real > threshold, stats["prediction_peak"].real > 0.5
    if isinstance(classes, str):
        chosen = {
            "present": present,
            "predicted": predicted,
            "either": present | predicted,
            "all": np.ones_like(present),
        }[classes]
    else:
        chosen = np.zeros_like(present)
        chosen[:, list(classes)] = True
    return chosen & (stats["pixels"].real > 0)


def tversky(
    stats: Sums,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    form: str = "metric",
    per: str | Mapping[str, float] = "dataset",
    classes: str | Sequence[int] = "all",
    class_threshold: float = 0.01,
    class_weight: Sequence[float] | None = None,
    smooth: float = 1.0,
    log: bool = False,
    gamma: float = 1.0,
    reduction: str = "mean",
) -> Any:
    """The region loss with all its options; `classes="auto"` is the caller's to resolve."""
    if isinstance(per, Mapping):
        options = {"alpha": alpha, "beta": beta, "form": form, "classes": classes, "class_threshold": class_threshold}
        options |= {"class_weight": class_weight, "smooth": smooth, "log": log, "gamma": gamma}
        return sum(weight * tversky(stats, per=one, **options) for one, weight in per.items())
    if per == "dataset":
        stats = total(stats)
    hit = stats["overlap"] if form == "metric" else stats["product"]
    shared = stats["product"] if form == "product" else stats["overlap"]
    numerator = hit + smooth
    denominator = hit + alpha * (stats["prediction"] - shared) + beta * (stats["label"] - shared) + smooth
    empty = denominator.real == 0
    score = np.where(empty, 1, numerator / np.where(empty, 1, denominator))
    loss = -np.log(score) if log else 1 - score
    loss = np.where(loss.real < 0, 0, loss) ** gamma  # rounding only: the score is at most 1
    active = active_classes(stats, classes, class_threshold)
    if reduction == "none":
        loss = np.where(active, loss, 0)
        return loss[0] if per == "dataset" else loss
    return reduce_classes(loss, active, per, None if class_weight is None else np.asarray(class_weight))


def mean_entropy(stats: Sums, numerator: Array, activation: str | None, class_weight: Sequence[float] | None) -> Any:
    """Σ w·numerator / Σ w·label, or Σ w·pixels under sigmoid and for a single class."""
    weight = np.ones(numerator.shape[1]) if class_weight is None else np.asarray(class_weight)
    binary = activation == "sigmoid" or numerator.shape[1] == 1
    norm = (weight * (stats["pixels"] if binary else stats["label"])).sum()
    return (weight * numerator).sum() / norm if norm.real > 0 else 0.0


def cross_entropy(
    stats: Sums, *, activation: str | None = "softmax", class_weight: Sequence[float] | None = None
) -> Any:
    """Mean cross-entropy."""
    return mean_entropy(stats, stats["cross_entropy"], activation, class_weight)


def kl_divergence(
    stats: Sums,
    *,
    activation: str | None = "softmax",
    class_weight: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> Any:
    """Mean Kullback-Leibler divergence times T²."""
    excess = stats["cross_entropy"] - stats["label_entropy"]
    return temperature**2 * mean_entropy(stats, excess, activation, class_weight)


def slopes(loss: Any, stats: Sums) -> Sums:
    """Derivatives of `loss(stats)` by every differentiable statistic, by complex steps."""
    step, result = 1e-30, {}
    for name in DIFFERENTIABLE:
        slope = np.zeros(stats[name].shape)
        for position in np.ndindex(slope.shape):
            moved = stats | {name: stats[name].astype(complex)}
            moved[name][position] += 1j * step
            slope[position] = np.imag(loss(moved)) / step
        result[name] = slope
    return result


def value_and_gradient(loss: Any, pixels: Pixels, gradient: str = "exact") -> tuple[float, Array]:
    """A loss of the statistics, and its gradient with respect to the logits."""
    stats = sums(pixels)
    return float(np.real(loss(stats))), pull_back(pixels, slopes(loss, stats), gradient)


# --- cases ----------------------------------------------------------------------------------------

SOFTMAX_KINDS = (
    "hard",
    "hard_usual",
    "dense",
    "smoothed",
    "smoothed_where",
    "teacher",
    "teacher_own",
    "raters",
    "raters_weighted",
)
BINARY_KINDS = (*(kind for kind in SOFTMAX_KINDS if kind != "hard_usual"), "maps")
MULTILABEL_KINDS = ("maps", "dense", "smoothed_maps", "smoothed_maps_where", "teacher", "teacher_own")
# (activation, number of classes, kind of label): every kind of label under every activation that has it
GRID = (
    *(("softmax", 5, kind) for kind in SOFTMAX_KINDS),
    *(("sigmoid", 1, kind) for kind in BINARY_KINDS),
    *(("sigmoid", 3, kind) for kind in MULTILABEL_KINDS),
    *((None, 4, kind) for kind in (*SOFTMAX_KINDS, "maps") if kind != "hard_usual"),
    *((None, 1, kind) for kind in ("hard", "dense", "teacher", "raters")),
)
PIXEL_MASKS = ("no mask", "bool", "weights")
CHANNEL_MASKS = ("channel bool", "channel weights", "one channel")
# the same with every kind of mask the activation takes
MASKED_GRID = tuple(
    (*entry, mask) for entry in GRID for mask in PIXEL_MASKS + (() if entry[0] == "softmax" else CHANNEL_MASKS)
)


@dataclass
class Case:
    """Arguments of a loss: logits, label, mask and the options that say how to read them."""

    logits: Tensor
    label: Any
    mask: Tensor | None
    options: dict[str, Any] = field(default_factory=dict)
    want: tuple[str, ...] = FIELDS

    def pixels(self, **options: Any) -> Pixels:
        """The oracle's view."""
        return pixels_of(self.logits, self.label, mask=self.mask, **(self.options | options))

    def statistics(self, logits: Tensor | None = None, **options: Any) -> sj.RegionStatistics:
        """The library's view."""
        logits = self.logits if logits is None else logits
        options = {"want": self.want} | self.options | options
        result = sj.region_statistics(logits, self.label, mask=self.mask, **options)
        assert {name for name in FIELDS if getattr(result, name) is not None} == set(options["want"])
        return result


def make_mask(kind: str, batch: int, classes: int, size: Sequence[int]) -> Tensor | None:
    """A mask with many zeros, by name."""
    if kind == "no mask":
        return None
    shape = (batch, *size) if kind in PIXEL_MASKS else (batch, 1 if kind == "one channel" else classes, *size)
    keep = torch.rand(shape) > 0.3
    return keep if kind.endswith("bool") else keep * (0.25 + 2 * torch.rand(shape))


def make_index(
    shape: Sequence[int], classes: int, ignore_index: int | None, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Random ids; one class means 0/1. The last class never occurs where there are more than two."""
    index = torch.randint(0, 2 if classes == 1 else max(classes - 1, 2), tuple(shape))
    if ignore_index is not None:
        index[torch.rand(tuple(shape)) < 0.2] = ignore_index
    return index.to(dtype)


def make_label(
    kind: str,
    activation: str | None,
    batch: int,
    classes: int,
    size: Sequence[int],
    dtype: torch.dtype,
    ignore_index: int | None,
) -> Any:
    """A label by the name of its kind."""
    index = make_index((batch, *size), classes, ignore_index)
    maps = make_index((batch, classes, *size), 1, ignore_index)
    teacher = 2 * torch.randn(batch, classes, *size, dtype=dtype)
    multiclass = activation == "softmax" or (activation is None and classes > 1)
    votes = make_index((batch, 3, *size), classes, ignore_index)
    match kind:
        case "hard" | "hard_usual":
            return index
        case "maps":
            return maps
        case "dense":
            return teacher.softmax(1) if multiclass else teacher.sigmoid()
        case "smoothed":
            return sj.SmoothedLabel(index, 0.3)
        case "smoothed_maps":
            return sj.SmoothedLabel(maps, 0.3)
        case "smoothed_maps_where":
            return sj.SmoothedLabel(maps, 0.3, torch.rand(maps.shape) > 0.5)
        case "smoothed_where":
            return sj.SmoothedLabel(index, 0.4, torch.rand(batch, *size) > 0.5)
        case "teacher":
            return sj.TeacherLabel(teacher)
        case "teacher_own":
            return sj.TeacherLabel(teacher, temperature=2.5)
        case "raters":
            return sj.RaterLabel(votes)
        case "raters_weighted":
            return sj.RaterLabel(votes, torch.rand(batch, 3, dtype=dtype) + 0.1)
    raise KeyError(kind)


def make_case(
    kind: str = "hard",
    activation: str | None = "softmax",
    classes: int = 5,
    *,
    mask: str = "no mask",
    batch: int = 3,
    size: Sequence[int] = (7, 9),
    dtype: torch.dtype = torch.float64,
    ignore_index: int | None = -100,
    temperature: float = 1.0,
    seed: int = 0,
) -> Case:
    """A random case with many classes absent or ignored somewhere."""
    torch.manual_seed(seed)
    values = torch.randn(batch, classes, *size, dtype=dtype)
    logits = (2 * values if activation else values.sigmoid()).requires_grad_()
    label = make_label(kind, activation, batch, classes, size, dtype, ignore_index)
    options: dict[str, Any] = {"activation": activation, "temperature": temperature}
    if ignore_index is not None:
        options["ignore_index"] = ignore_index
    want = USUAL if kind == "hard_usual" else FIELDS
    return Case(logits, label, make_mask(mask, batch, classes, size), options, want)


# --- comparisons ----------------------------------------------------------------------------------


def close(actual: Tensor | Array | float, expected: Tensor | Array | float, tolerance: float, what: str = "") -> None:
    """The largest deviation, relative to the largest absolute value expected, stays within the tolerance."""
    actual, expected = (array(v) if isinstance(v, Tensor) else np.asarray(v, dtype=float) for v in (actual, expected))
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), f"{what}: not finite"
    if expected.size:
        deviation, scale = np.abs(actual - expected).max(), np.abs(expected).max()
        assert deviation <= tolerance * scale, f"{what}: off by {deviation:.3e} where the largest value is {scale:.3e}"


def statistics_close(actual: sj.RegionStatistics, expected: Mapping[str, Any], tolerance: float) -> None:
    """All fields that were asked for agree; `pixels` may be per image or per image and class."""
    for name in FIELDS[:-1]:
        if getattr(actual, name) is not None:
            close(getattr(actual, name), expected[name], tolerance, name)
    shape = tuple(actual.prediction.shape)
    pixels = [v.reshape(shape[0], -1) for v in (array(actual.pixels), np.asarray(expected["pixels"], dtype=float))]
    close(*[np.broadcast_to(v, shape) for v in pixels], tolerance, "pixels")


def fields_of(statistics: sj.RegionStatistics) -> Sums:
    """The library's statistics as arrays."""
    return {name: array(getattr(statistics, name)) for name in FIELDS if getattr(statistics, name) is not None}


def gradient_of(value: Tensor, logits: Tensor) -> Tensor:
    """The gradient, which must be there."""
    (result,) = torch.autograd.grad(value, logits, retain_graph=True)
    assert result.dtype == logits.dtype
    assert result.shape == logits.shape
    return result


def random_upstream(statistics: sj.RegionStatistics) -> tuple[Tensor, Sums]:
    """A random combination of all differentiable statistics, and its coefficients."""
    names = [name for name in DIFFERENTIABLE if getattr(statistics, name) is not None]
    upstream = {name: torch.randn_like(statistics.prediction) for name in names}
    return combination(statistics, upstream), {name: array(values) for name, values in upstream.items()}


def combination(statistics: sj.RegionStatistics, upstream: Mapping[str, Tensor | Array]) -> Tensor:
    """Σ upstream·statistics."""
    return sum((getattr(statistics, name) * torch.as_tensor(slope)).sum() for name, slope in upstream.items())
