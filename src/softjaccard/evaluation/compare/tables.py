"""The tables of a grid, from what is kept of its runs: Markdown, CSV, and a picture of the differences."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from softjaccard.errors import InputError, InputErrors
from softjaccard.evaluation.compare.grid import Grid, RunName, unknown_scores
from softjaccard.evaluation.compare.records import ImageTables, Record, load_record, load_tables
from softjaccard.evaluation.report.intervals import RESAMPLES, drawn_scores
from softjaccard.evaluation.report.parts import is_fraction, score_text
from softjaccard.files import write_text, write_whole
from softjaccard.metrics import paired_bootstrap
from softjaccard.metrics.bootstrap import percentiles
from softjaccard.metrics.iou import Score

_COLUMNS = (
    "row", "score", "n", "mean", "standard_deviation", "pairs", "difference", "low", "high", "separable", "failed",
    "changed",
)  # fmt: skip
_UNCERTAIN = "~"


@dataclass(frozen=True)
class Difference:
    """A score of a row less that of the baseline.

    Attributes:
        pairs: Number of seeds that both have, over which it is averaged.
        value: The difference.
        low: Of its 95 % interval; None for a score that is not kept by image.
        high: Likewise.
    """

    pairs: int
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def separable(self) -> bool | None:
        """Whether the interval leaves out zero; None without one."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Cell:
    """A score of a row: the values of its seeds, and the difference from the baseline where there is one."""

    values: tuple[float, ...]
    difference: Difference | None

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a sample, over seeds; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Summary:
    """All numbers of the tables.

    Attributes:
        grid: What was run.
        cells: By row and score.
        failed: Reasons of the runs that failed.
        missing: Runs without a result.
        changed: Of results that are not of the grid's settings, what differs.
        unlike: Rows that were tested on other images than the baseline.
        images: Number of the baseline's images; None without a result of it.
    """

    grid: Grid
    cells: Mapping[tuple[str, str], Cell]
    failed: Mapping[RunName, str]
    missing: Sequence[RunName]
    changed: Mapping[RunName, str]
    unlike: Sequence[str]
    images: int | None


def write_tables(grid: Grid, output: Path, changed: Mapping[RunName, str]) -> Summary:
    """Write `table.md`, `table.csv` and `differences.png` into the output folder.

    They depend on the grid and the runs' results alone, and not on when and in which order these were made.

    Args:
        grid: What the tables are of.
        output: The folder.
        changed: Runs that are not of the grid's settings, from `changed_runs`.

    Raises:
        InputError: If results are damaged, or a score of the grid is in none of them.
    """
    summary = summarise(grid, output, changed)
    write_text(output / "table.md", markdown(summary))
    write_text(output / "table.csv", comma_separated(summary))
    picture = output / "differences.png"
    if any(cell.difference for cell in summary.cells.values()):
        draw_differences(picture, summary)
    else:
        picture.unlink(missing_ok=True)
    return summary


def summarise(grid: Grid, output: Path, changed: Mapping[RunName, str]) -> Summary:
    """Work out the numbers; see `write_tables`."""
    rows = {row.name: [RunName(row.name, seed) for seed in row.seeds] for row in grid.rows.values()}
    records = {run: load_record(output, run) for runs in rows.values() for run in runs}
    tested = {run: each for run, each in records.items() if each and not each.failed and each.test == grid.test}
    known = {name for record in tested.values() for name in record.scores}
    if tested and (wrong := unknown_scores(grid.scores, known)):
        raise InputErrors(wrong)
    found = {name: [tested[run] for run in runs if run in tested] for name, runs in rows.items()}
    baseline = found[grid.baseline]
    pairs = {name: _pairs(each, baseline) for name, each in found.items() if name != grid.baseline}
    unlike = [name for name, each in pairs.items() if any(_unlike(own, other) for own, other in each)]
    tables = {record.run: load_tables(output, record) for record in tested.values()}
    drawn = cache(lambda run: drawn_scores(tables[run].sums))
    cells = {
        (name, score): Cell(
            tuple(record.scores[score] for record in found[name] if score in record.scores),
            _difference(score, pairs[name], tables, drawn) if name in pairs and name not in unlike else None,
        )
        for name in rows
        for score in grid.scores
    }
    failed = {run: record.failed for run, record in records.items() if record and record.failed}
    missing = [run for run in records if run not in tested and run not in failed]
    shown = {run: told for run, told in changed.items() if run in tested}
    return Summary(grid, cells, failed, missing, shown, unlike, len(baseline[0].images) if baseline else None)


def _pairs(row: Sequence[Record], baseline: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Return the results of both with the same seeds."""
    by_seed = {record.seed: record for record in baseline}
    return [(record, by_seed[record.seed]) for record in row if record.seed in by_seed]


def _unlike(first: Record, second: Record) -> bool:
    return (first.images, first.classes) != (second.images, second.classes)


def _difference(
    score: str,
    pairs: Sequence[tuple[Record, Record]],
    tables: Mapping[RunName, ImageTables],
    drawn: Callable[[RunName], Mapping[str, Tensor]],
) -> Difference | None:
    pairs = [pair for pair in pairs if all(score in record.scores for record in pair)]
    if not pairs:
        return None
    value = statistics.fmean(own.scores[score] - other.scores[score] for own, other in pairs)
    if _is_counted(score, len(pairs[0][0].classes)):
        own, other = (
            torch.stack([tables[record.run].counts for record in records]) for records in zip(*pairs, strict=True)
        )
        interval = paired_bootstrap(own, other, score, resamples=RESAMPLES)
        return Difference(len(pairs), value, interval.low, interval.high)
    if not all(score in drawn(record.run) for pair in pairs for record in pair):
        return Difference(len(pairs), value)
    draws = torch.stack([drawn(own.run)[score] - drawn(other.run)[score] for own, other in pairs])
    return Difference(len(pairs), value, *percentiles(draws.mean(0)))


def _is_counted(score: str, classes: int) -> bool:
    """Whether a score is one of a table of counts."""
    try:
        Score.parse(score, classes)
    except ValueError:
        return False
    return True


def markdown(summary: Summary) -> str:
    """Write the table of scores, that of differences, and the runs that are not in them."""
    grid = summary.grid
    images = f"{summary.images} images of the {grid.split} split" if summary.images else f"{grid.split} split"
    lines = [
        f"# {grid.title}",
        "",
        f"Scores in percent (NLL and losses as they are): mean ± standard deviation over n seeds; {grid.checkpoint} "
        f"checkpoints, {images}.",
        "",
        *_markdown_table(("", "n", *grid.scores), _score_rows(summary)),
    ]
    if len(grid.rows) > 1:
        lines += [
            "",
            f"Difference from {grid.baseline}, averaged over the n seeds that both have, and its 95 % interval from a "
            "paired bootstrap over images, which says nothing about other seeds and isn't corrected for the number of "
            f"comparisons. {_UNCERTAIN}: not separable from zero. Without an interval: the score is not kept by image.",
            "",
            *_markdown_table(("", "n", *grid.scores), _difference_rows(summary)),
        ]
    notes = [
        *(f"- {run} failed: {reason}" for run, reason in summary.failed.items()),
        *_missing_notes(summary.missing),
        *(f"- {run} {told}." for run, told in summary.changed.items()),
        *(f"- {row} is not compared: it was tested on other images or classes." for row in summary.unlike),
    ]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _missing_notes(missing: Sequence[RunName]) -> Iterator[str]:
    """Yield a line for each row that lacks results."""
    seeds: dict[str, list[int]] = {}
    for run in missing:
        seeds.setdefault(run.row, []).append(run.seed)
    for row, lacking in seeds.items():
        many = len(lacking) > 1
        told = "seeds {} have no results yet" if many else "seed {} has no result yet"
        yield f"- {row}, {told.format(', '.join(map(str, lacking)))}."


def _score_rows(summary: Summary) -> Iterator[list[str]]:
    for name in summary.grid.rows:
        cells = [summary.cells[name, score] for score in summary.grid.scores]
        texts = []
        for score, cell in zip(summary.grid.scores, cells, strict=True):
            text = "-" if cell.mean is None else score_text(score, cell.mean)
            texts.append(text if cell.deviation is None else f"{text} ± {score_text(score, cell.deviation)}")
        yield [name, str(max(len(cell.values) for cell in cells)), *texts]


def _difference_rows(summary: Summary) -> Iterator[list[str]]:
    grid = summary.grid
    for name in grid.rows:
        found = {score: summary.cells[name, score].difference for score in grid.scores}
        if name != grid.baseline:
            pairs = max(each.pairs if each else 0 for each in found.values())
            yield [name, str(pairs), *(_difference_text(score, each) for score, each in found.items())]


def _difference_text(score: str, difference: Difference | None) -> str:
    if difference is None:
        return "-"
    text = score_text(score, difference.value, "+")
    if difference.low is None or difference.high is None:
        return text
    text += f" [{score_text(score, difference.low, '+')}, {score_text(score, difference.high, '+')}]"
    return text if difference.separable else f"{text} {_UNCERTAIN}"


def print_scores(summary: Summary) -> None:
    """Print the table of scores."""
    rows = [["", "n", *summary.grid.scores], *_score_rows(summary)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
        sys.stdout.write(f"{'  '.join([name.ljust(widths[0]), *cells])}\n")


def _markdown_table(heads: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    marks = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]


def comma_separated(summary: Summary) -> str:
    """Write a line for each row and score, in fractions; `changed` has the seeds with other settings than the grid."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for (name, score), cell in summary.cells.items():
        difference = cell.difference
        numbers = (difference.value, difference.low, difference.high) if difference else (None, None, None)
        separable = "" if difference is None or difference.separable is None else str(difference.separable).lower()
        reasons = "; ".join(f"seed {run.seed}: {why}" for run, why in summary.failed.items() if run.row == name)
        changed = " ".join(str(run.seed) for run in summary.changed if run.row == name)
        values = [_number(cell.mean), _number(cell.deviation), difference.pairs if difference else ""]
        writer.writerow([name, score, len(cell.values), *values, *map(_number, numbers), separable, reasons, changed])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def draw_differences(path: Path, summary: Summary) -> None:
    """Draw the differences from the baseline with their intervals, a panel for each score.

    Args:
        path: Where the PNG goes; it is written whole or not at all.
        summary: What to draw.
    """
    grid = summary.grid
    names = [name for name in grid.rows if name != grid.baseline]
    figure = Figure(figsize=(1.6 + 2.2 * len(grid.scores), 1.7 + 0.32 * len(names)), dpi=100, layout="constrained")
    figure.suptitle(f"{grid.title}: difference from {grid.baseline}", fontsize=11)
    panels = figure.subplots(1, len(grid.scores), sharey=True, squeeze=False)[0]
    for score, axes in zip(grid.scores, panels, strict=True):
        percent = is_fraction(score)
        axes.set_title(f"{score}, %" if percent else score, fontsize=10)
        axes.axvline(0, color="#808080", linewidth=1)
        axes.grid(axis="x", color="#e0e0e0", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        for spine in ("top", "right", "left"):
            axes.spines[spine].set_visible(False)
        for height, name in enumerate(names):
            if difference := summary.cells[name, score].difference:
                factor = 100 if percent else 1
                colour, fill = "#0072b2", "#0072b2" if difference.separable else "white"
                if difference.low is not None and difference.high is not None:
                    axes.plot([factor * difference.low, factor * difference.high], [height] * 2, color=colour)
                axes.plot(factor * difference.value, height, "o", color=colour, markerfacecolor=fill, markersize=6)
    figure.supxlabel("hollow: zero lies inside the interval, or no interval is known", fontsize=9)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format="png"))


def check_results(summary: Summary) -> None:
    """Tell of failed runs.

    Raises:
        InputError: If there are any.
    """
    if summary.failed:
        runs = sum(len(row.seeds) for row in summary.grid.rows.values())
        raise InputError(
            f"{len(summary.failed)} of {runs} runs have failed; the table says why, and runs/ROW/SEED/log.txt more. "
            "--again failed tries them again."
        )
