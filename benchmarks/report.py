"""The results as tables, with the targets that they meet or miss."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.losses import CONTENDERS
from benchmarks.selection import CPU_SETTINGS, SHAPES, Shape

Result = dict[str, Any]


class Target(NamedTuple):
    """What a loss is to reach on hard labels and float32 logits."""

    loss: str
    device: str
    shapes: tuple[Shape, ...]
    stride: int
    ratio: str
    at_most: float


_CPU = {stride: tuple(shape for shape, at in CPU_SETTINGS if at == stride) for stride in (1, 4)}
TARGETS = (
    Target("chunked", "cpu", _CPU[1], 1, "time_ratio", 1.0),
    Target("chunked", "cpu", _CPU[4], 4, "time_ratio", 1.0),
    Target("chunked", "cpu", _CPU[4], 4, "peak_ratio", 0.35),
    Target("triton", "cuda", SHAPES, 1, "floor_ratio", 1.6),
    Target("triton", "cuda", SHAPES, 4, "time_ratio", 0.5),
    Target("triton", "cuda", SHAPES, 4, "peak_ratio", 0.15),
)

#: What one worker is to deliver from the cache.
IMAGES_PER_SECOND = 100
_STEPS = ("read", "geometry", "photometric", "collate")


def targets_of(result: Result, device: str) -> str:
    """The targets of a case, each met or not; empty if it has none."""
    said = []
    for loss, kind, shapes, stride, ratio, at_most in TARGETS:
        mine = (result["loss"], device, result["stride"], result["label"], result["dtype"])
        value = result.get(ratio)
        if mine == (loss, kind, stride, "hard", "float32") and tuple(result["shape"]) in shapes and value is not None:
            said.append(f"{ratio.split('_')[0]} <= {at_most:g}: {'met' if value <= at_most else 'NOT MET'}")
    return ", ".join(said)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _reason(result: Result) -> str:
    return f"FAILED: {result['failed']}" if "failed" in result else str(result["skipped"])


def _ratio(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def loss_table(results: list[Result], device: str) -> str:
    """The losses as Markdown."""
    rows = [
        _row("(B, C, H, W)", "stride", "label", "logits", "loss", "ms", "time", "peak", "target"),
        "|---|---|---|---|---|---:|---:|---:|---|",
    ]
    for result in results:
        case = (tuple(result["shape"]), result["stride"], result["label"], result["dtype"])
        title = CONTENDERS[result["loss"]].title
        if "seconds" in result:
            milliseconds = f"{1000 * result['seconds']:.{1 if device == 'cpu' else 3}f}"
            ratios = (_ratio(result["time_ratio"]), _ratio(result["peak_ratio"]))
            rows.append(_row(*case, title, milliseconds, *ratios, targets_of(result, device)))
        else:
            rows.append(_row(*case, title, "", "", "", _reason(result)))
    return "\n".join(rows)


def metric_table(results: list[Result]) -> str:
    """The metrics as Markdown."""
    rows = [_row("update of", "image", "ms", "peak / inputs", "time"), "|---|---|---:|---:|---|"]
    for result in results:
        size = " x ".join(map(str, result["size"]))
        if "seconds" in result:
            compared = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in result["time_ratio"].items())
            milliseconds = f"{1000 * result['seconds']:.1f}"
            rows.append(_row(result["metric"], size, milliseconds, _ratio(result["peak_ratio"]), compared))
        else:
            rows.append(_row(result["metric"], size, "", "", _reason(result)))
    return "\n".join(rows)


def _loader_target(result: Result) -> str:
    if not result["cache"] or result["workers"] != 1:
        return ""
    return f">= {IMAGES_PER_SECOND}/s: {'met' if 1 / result['seconds'] >= IMAGES_PER_SECOND else 'NOT MET'}"


def loader_table(results: list[Result]) -> str:
    """The loaders as Markdown; the target is one worker's, from the cache."""
    rows = [
        _row("training images", "files", "workers", "images/s", "CPU ms", *_STEPS, "target"),
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for result in results:
        size = " x ".join(map(str, result["size"]))
        case = (size, "cached" if result["cache"] else "decoded", result["workers"])
        if "seconds" in result:
            times = (result["processor_seconds"], *(result["step_seconds"][step] for step in _STEPS))
            shown = ("" if seconds is None else f"{1000 * seconds:.2f}" for seconds in times)
            rows.append(_row(*case, f"{1 / result['seconds']:.0f}", *shown, _loader_target(result)))
        else:
            rows.append(_row(*case, *[""] * 6, _reason(result)))
    return "\n".join(rows)


def training_table(results: list[Result]) -> str:
    """The training steps as Markdown."""
    rows = [_row("training step", "images", "ms", "peak MiB", "time"), "|---|---|---:|---:|---|"]
    for result in results:
        case = (result["training"], f"{result['images']} x {' x '.join(map(str, result['size']))}")
        if "seconds" in result:
            peak = "unknown" if result["peak_bytes"] is None else f"{result['peak_bytes'] / 2**20:.0f}"
            rows.append(_row(*case, f"{1000 * result['seconds']:.0f}", peak, _ratio(result["time_ratio"])))
        else:
            rows.append(_row(*case, "", "", _reason(result)))
    return "\n".join(rows)


_TRAINING_LEGEND = """\
DeepLabV3+ with EfficientNet-Lite0, 11 classes: forward, loss and backward of so many labelled images and, but for
supervised-only, as many unlabelled ones. time: divided by that of supervised-only, timed in turn. peak: above what is
held between steps, weights and batch among it."""

_LOADER_LEGEND = """\
CamVid's pipeline at half resolution: random scales from 0.5 to 2, crops of 160 x 224, brightness, contrast, saturation,
hue, grey and blur. images/s: by the clock. CPU and steps: the processor's ms for each image, in one process."""


_LEGEND = """\
Forward and backward; H and W are the label's, the logits are smaller by the stride. time: divided by F.cross_entropy of
the hard label, behind F.interpolate at stride 4, with logits of the same dtype, timed in turn. peak: memory above the
inputs, divided by the size of logits at the label's resolution."""


def report(results: list[Result], device: str, machine: dict[str, object]) -> str:
    """Everything measured, and how busy the machine was."""
    losses = [result for result in results if "loss" in result]
    metrics = [result for result in results if "metric" in result]
    parts = [loss_table(losses, device), _LEGEND] if losses else []
    parts += [metric_table(metrics)] if metrics else []
    loaders = [result for result in results if "workers" in result]
    parts += [loader_table(loaders), _LOADER_LEGEND] if loaders else []
    trainings = [result for result in results if "training" in result]
    parts += [training_table(trainings), _TRAINING_LEGEND] if trainings else []
    load = f"load average {machine['load_before']} before and {machine['load_after']} after"
    parts.append(f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, {load}.")
    return "\n\n".join(parts)
