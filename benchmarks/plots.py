"""Time and peak memory against the number of classes, as pictures for the documentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.losses import CONTENDERS
from benchmarks.report import Result
from benchmarks.selection import STRIDES
from softjaccard.files import write_whole

#: Colours of Okabe and Ito, which the colour-blind can tell apart.
_COLOURS = {
    "cross-entropy": "#000000",
    "chunked": "#D55E00",
    "triton": "#E69F00",
    "reference": "#0072B2",
    "compiled": "#56B4E9",
    "smp-jaccard": "#009E73",
    "monai-dice": "#CC79A7",
}
_QUANTITIES = {
    "time": ("milliseconds per megapixel", lambda result, pixels: result["seconds"] * 1e3 / pixels),
    "memory": (
        "peak MiB per megapixel, above the inputs",
        lambda result, pixels: result["peak_bytes"] / 2**20 / pixels,
    ),
}


def draw_plots(folder: Path, results: list[Result], device: str, machine: str) -> None:
    """Draw ``bench_time_DEVICE.png`` and ``bench_memory_DEVICE.png``: hard labels, float32, a panel for each stride."""
    usual = [r for r in results if r.get("label") == "hard" and r["dtype"] == "float32" and r.get("peak_bytes")]
    for quantity, (heading, value) in _QUANTITIES.items():
        figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
        panels = figure.subplots(1, len(STRIDES), sharey=True)
        for panel, stride in zip(panels, STRIDES, strict=True):
            _draw_panel(panel, [result for result in usual if result["stride"] == stride], value)
            panel.set_title("logits at full resolution" if stride == 1 else f"logits at stride {stride}", fontsize=10)
        panels[0].set_ylabel(heading, fontsize=9)
        figure.suptitle(f"Forward and backward, hard label, float32, {machine}", fontsize=10)
        lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
        named = {title: lines[title] for loss in _COLOURS if (title := _title(loss)) in lines}
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        write_whole(folder / f"bench_{quantity}_{device}.png", figure.savefig)


def _title(loss: str) -> str:
    return CONTENDERS[loss].title.replace("`", "")


def _draw_panel(panel: Axes, results: list[Result], value: Callable[[Result, float], float]) -> None:
    for loss, colour in _COLOURS.items():
        points: dict[int, float] = {}
        for result in results:
            images, classes, height, width = result["shape"]
            if result["loss"] == loss:  # of several shapes with as many classes the last, which is the largest
                points[classes] = value(result, images * height * width / 1e6)
        if points:
            style = {"marker": "o", "markersize": 4, "color": colour, "label": _title(loss)}
            panel.plot(*zip(*sorted(points.items()), strict=True), **style)
    classes = sorted({result["shape"][1] for result in results})
    panel.set(xscale="log", yscale="log", xlabel="classes")
    panel.xaxis.set_major_locator(FixedLocator(classes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(color="#E3E3E3")
    panel.tick_params(labelsize=8)
