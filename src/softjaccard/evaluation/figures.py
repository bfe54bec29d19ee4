"""Pictures of predictions beside labels, written as PNG without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from torch import Tensor

from softjaccard.data.colours import PALETTE, UNLABELLED, hex_colour
from softjaccard.files import write_whole

_COLOURS = tuple(map(hex_colour, PALETTE))
_UNLABELLED = hex_colour(UNLABELLED)
_CELL = 1.5  # inches


def draw_comparison(
    path: Path,
    image: Tensor,
    label: Tensor,
    annotators: Tensor,
    predictions: Mapping[str, Tensor],
    classes: Sequence[str],
) -> None:
    """Draw images, labels, predictions of several networks, and the doubt of annotators and networks, in rows.

    Doubt is 1 - the largest probability of a pixel: for the annotators, the share that disagrees with most of them.

    Args:
        path: where the PNG goes; it is written whole or not at all.
        image: float ``(N, 3, H, W)`` in [0, 1]; each gets a row.
        label: integer class ids ``(N, H, W)``; an id that is no class is drawn black.
        annotators: the distribution of their labels, ``(N, C, H, W)``.
        predictions: the probabilities ``(N, C, H, W)`` of each network, by its name.
        classes: names of the C classes.

    Raises:
        ValueError: there are more classes than colours.
    """
    if len(classes) > len(PALETTE):
        raise ValueError(f"classes: expected at most {len(PALETTE)} names, got {len(classes)}")
    known = torch.where((label >= 0) & (label < len(classes)), label, len(classes))
    colours = {"cmap": ListedColormap([*_COLOURS[: len(classes)], _UNLABELLED]), "vmin": 0, "vmax": len(classes)}
    doubt = {"cmap": "magma", "vmin": 0, "vmax": 0.6}
    groups: dict[str, dict[str, tuple[Tensor, dict[str, Any]]]] = {
        "Scene": {"image": (image.movedim(1, -1), {}), "label": (known, colours)},
        "Predicted class": {name: (p.argmax(1), colours) for name, p in predictions.items()},
        "Doubt: 1 - largest probability": {
            name: (1 - p.amax(1), doubt) for name, p in {"annotators": annotators, **predictions}.items()
        },
    }
    rows, aspect = len(image), image.shape[2] / image.shape[3]
    # A narrow gap follows each group; the last one holds the scale.
    widths = [width for group in groups.values() for width in [1.0] * len(group) + [0.1]]
    size = (_CELL * sum(widths) + 1.1, _CELL * aspect * rows + 1.3)
    figure = Figure(figsize=size, dpi=100)
    margins = {"left": 0.1 / size[0], "right": 1 - 0.5 / size[0], "bottom": 0.6 / size[1], "top": 1 - 0.6 / size[1]}
    grid = figure.add_gridspec(rows, len(widths), width_ratios=widths, wspace=0.06, hspace=0.05, **margins)
    column = 0
    for heading, columns in groups.items():
        for name, (pictures, style) in columns.items():
            cells = [figure.add_subplot(grid[row, column]) for row in range(rows)]
            drawn = [_draw(cell, picture, style) for cell, picture in zip(cells, pictures, strict=True)]
            cells[0].set_title(name, fontsize=10)
            column += 1
        first = figure.axes[-rows * len(columns)]
        first.annotate(heading, (0, 1), (0, 24), "axes fraction", "offset points", size=12, weight="bold")
        column += 1
    figure.colorbar(drawn[0], cax=figure.add_subplot(grid[:, -1]), extend="max").ax.tick_params(labelsize=8)
    names = [*zip(classes, _COLOURS, strict=False), ("not labelled", _UNLABELLED)]
    patches = [Patch(facecolor=colour, edgecolor="#808080", label=name) for name, colour in names]
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), frameon=False, fontsize=10)
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format="png"))


def _draw(axes: Axes, picture: Tensor, style: Mapping[str, Any]) -> AxesImage:
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto", **style)
