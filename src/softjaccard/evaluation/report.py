"""The command ``softjaccard report``: what tests of one or more runs found, in one HTML file."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import softjaccard
from softjaccard.errors import InputError
from softjaccard.evaluation.charts import Line, interval_mark, line_chart, reliability_diagram
from softjaccard.evaluation.intervals import Range, score_differences, score_intervals
from softjaccard.evaluation.markup import Markup, join, tag
from softjaccard.evaluation.results import EvaluationResult, Picture, encode_image, image_scores
from softjaccard.files import write_text

#: Colours of the runs: Okabe and Ito's, in an order in which neighbours differ most; a ninth run begins anew.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#B8A800")
_WRONG = (213, 94, 0)
_UNLABELLED = (0, 0, 0)
_MOST_CLASSES = 40
"""Of a confusion matrix, and with a reliability diagram of their own; nobody would read more."""
_MOST_POINTS = 300
"""Of a curve; more are averaged, because a chart has no more pixels."""

_MEANINGS = {
    "mIoU_D": "IoU of each class over all images together, mean over classes",
    "mIoU_I": "IoU of each class in each image, mean over the image's classes, then over images",
    "mIoU_C": "IoU of each class in each image, mean over the class's images, then over classes",
    "mIoU_I_worst5": "as mIoU I, of the lowest 5 % of the images",
    "mIoU_C_worst5": "as mIoU C, of the lowest 5 % of each class's images",
    "mDice_D": "Dice score of each class over all images together, mean over classes",
    "mAcc_D": "share of each class's pixels that are found, mean over classes",
    "Acc": "share of all pixels that are right",
    "ECE": "mean distance between confidence and share of hits; less is better",
    "SCE": "as ECE for the probability of each class, mean over classes; less is better",
    "Brier": "squared distance between probabilities and label; less is better",
    "NLL": "cross-entropy, in nats; less is better",
    "loss": "what the training minimised, mean over test batches; less is better",
}
_COUNTED = ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_I_worst5", "mIoU_C_worst5", "mDice_D", "mAcc_D", "Acc")
"""Scores of a table of counts, of which the report gives intervals."""
_NO_FRACTIONS = {"NLL", "loss"}
_LESS_IS_BETTER = {"ECE"}
_CURVES = {"loss": 1, "mIoU_D": 100, "ECE": 100}
"""What is drawn, and the factor on it."""
_IMAGE_SCORES = {"IoU": "IoU, mean over the image's classes", "Acc": "share of pixels that are right"}


@dataclass(frozen=True, eq=False)
class _Run:
    name: str
    colour: str
    result: EvaluationResult
    history: Mapping[str, list[tuple[float, float]]] | None
    """(step, value) by column of metrics.csv; None without that file."""


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write one HTML file about one or more runs that have been tested.

    Args:
        folders: The runs' folders. The first one is what the others are compared with.
        output: The HTML file; its folder is made if need be.

    Raises:
        InputError: If a run has no test result, one of its files is damaged, or the output cannot be written.
    """
    runs = [
        _Run(name, RUN_COLOURS[number % len(RUN_COLOURS)], _read_result(folder), _read_history(folder / "metrics.csv"))
        for number, (name, folder) in enumerate(zip(_names(folders), folders, strict=True))
    ]
    page = _page(runs)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise InputError(f"--output: {output} cannot be written: {error.strerror}.") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or their paths where names would be the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _read_result(folder: Path) -> EvaluationResult:
    if not folder.is_dir():
        raise InputError(f"There is no run in {folder}.")
    path = folder / "evaluation" / "test"
    if not path.is_dir():
        raise InputError(f"{folder} has no test result: run `softjaccard test {folder}` first.")
    return EvaluationResult.load(path)


def _read_history(path: Path) -> dict[str, list[tuple[float, float]]] | None:
    if not path.is_file():
        return None
    history: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value:
                        history.setdefault(name, []).append((float(row["step"]), float(value)))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as the log of a training: {error}") from error
    return history


def _page(runs: Sequence[_Run]) -> Markup:
    sections = {
        "Scores": _scores(runs),
        "Differences": _differences(runs) if len(runs) > 1 else None,
        "IoU of each class": _class_bars(runs),
        "Training": _curves(runs),
        "Calibration": _calibration(runs),
        "Confusion": _confusion(runs),
        "Worst images": _worst(runs),
    }
    shown = {title: body for title, body in sections.items() if body is not None}
    anchors = {title: title.lower().replace(" ", "-") for title in shown}
    title = f"Test of {runs[0].name}" if len(runs) == 1 else f"Tests of {len(runs)} runs"
    style = Markup((files("softjaccard.evaluation") / "report.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        # Nothing may be loaded from elsewhere, and nothing run, whatever the data hold.
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    links = [tag("a", title, href=f"#{anchor}") for title, anchor in anchors.items()]
    body = tag(
        "body",
        tag("header", tag("h1", title), _overview(runs), tag("nav", *links, aria_label="Sections")),
        tag("main", *(tag("section", tag("h2", t), shown[t], id=anchor) for t, anchor in anchors.items())),
        tag("footer", *_versions(runs), f"Report by softjaccard {softjaccard.__version__}; it needs no other file."),
    )
    return join(Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), "\n")


def _overview(runs: Sequence[_Run]) -> Markup:
    """Return the table of what was tested."""
    rows = [
        tag(
            "tr",
            tag("th", _swatch(run.colour), run.name, scope="row", class_="run"),
            tag("td", f"{len(run.result.images)} {run.result.split} images, {len(run.result.classes)} classes"),
            tag("td", f"{Path(run.result.checkpoint).name}, epoch {run.result.epoch + 1}, step {run.result.step}"),
            tag("td", run.result.seed),
        )
        for run in runs
    ]
    return _table(["Run", "Tested on", "Checkpoint", "Seed"], rows)


def _versions(runs: Sequence[_Run]) -> list[Markup]:
    """Say what the runs were tested with, once for those that are alike."""
    runs_by_versions: dict[str, list[str]] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.result.versions.items())
        runs_by_versions.setdefault(versions, []).append(run.name)
    return [tag("div", f"Tested with {what}: {', '.join(names)}.") for what, names in runs_by_versions.items()]


def _scores(runs: Sequence[_Run]) -> Markup:
    names = dict.fromkeys(name for run in runs for name in run.result.scores if "/" not in name)
    intervals = {run: score_intervals(run.result, _COUNTED) for run in runs}
    main = [_score_row(name, intervals) for name in _MEANINGS if name in names]
    more = [_score_row(name, intervals) for name in names if name not in _MEANINGS]
    heads = ["Score", *_run_heads(runs)]
    note = "In percent, except NLL and loss. Below a score is its 95 % interval, from resampling the test images."
    details = tag("details", tag("summary", "Further scores"), _table(heads, more)) if more else None
    return join(tag("p", note, class_="muted"), _table(heads, main), details)


def _score_row(name: str, intervals: Mapping[_Run, Mapping[str, Range]]) -> Markup:
    cells = []
    for run, ranges in intervals.items():
        value = run.result.scores.get(name)
        text = "not measured" if value is None else tag("b", _shown(name, value))
        between = (
            _small(f"{_shown(name, ranges[name].low)} to {_shown(name, ranges[name].high)}") if name in ranges else None
        )
        cells.append(tag("td", text, between, class_="number"))
    return tag("tr", tag("th", _label(name), _small(_MEANINGS.get(name)), scope="row"), *cells)


def _class_bars(runs: Sequence[_Run]) -> Markup:
    parts = []
    for members in _groups(runs):
        first = members[0].result
        rows = [
            tag(
                "tr",
                tag("th", _swatch(_hex(colour)), name, scope="row"),
                tag("td", *(_class_bar(run, name) for run in members)),
            )
            for name, colour in zip(first.classes, first.colours, strict=True)
        ]
        parts += [_run_legend(members), tag("table", tag("tbody", *rows), class_="bars")]
    note = "IoU_D in percent: counts of all images together. Runs are in the order of the legend."
    return join(tag("p", note, class_="muted"), *parts)


def _class_bar(run: _Run, name: str) -> Markup:
    value = run.result.scores.get(f"IoU_D/{name}")
    if value is None:
        return tag("div", "neither labelled nor predicted", class_="bar muted")
    style = f"--share: {value:.4f}; background: {run.colour}"
    title = f"{run.name}, {name}: {100 * value:.1f} %"
    return tag("div", tag("i", style=style), f"{100 * value:.1f}", class_="bar", title=title)


def _curves(runs: Sequence[_Run]) -> Markup:
    missing = [run.name for run in runs if run.history is None]
    figures = []
    for name, factor in _CURVES.items():
        lines = [
            Line(f"{run.name}, {stage}", run.colour, _thinned(points, factor), faint=stage == "train")
            for run in runs
            for stage in ("train", "val")
            if (points := (run.history or {}).get(f"{stage}/{name}"))
        ]
        if lines:
            description = f"{name} over the steps of the training: {', '.join(line.name for line in lines)}"
            caption = tag("figcaption", _label(name), ", %" if factor == 100 else None)
            figures.append(tag("figure", caption, line_chart(lines, description, across="step")))
    note = f"No metrics.csv, so no curves: {', '.join(missing)}." if missing else None
    if not figures:
        return tag("p", note or "The logs hold no values.")
    keys = [("key", "validation"), ("key faint", "training, with augmentation, while the weights change")]
    legend = _legend([*((_swatch(run.colour), run.name) for run in runs if run.history),
                      *((tag("span", class_=kind), text) for kind, text in keys)])  # fmt: skip
    return join(note and tag("p", note), legend, tag("div", *figures, class_="figures"))


def _thinned(points: Sequence[tuple[float, float]], factor: float) -> list[tuple[float, float]]:
    """Return finite points, times a factor, as means of neighbours if there are too many."""
    finite = np.array([point for point in points if np.isfinite(point).all()]).reshape(-1, 2)
    parts = np.array_split(finite, min(len(finite), _MOST_POINTS)) if len(finite) else []
    return [(float(part[:, 0].mean()), factor * float(part[:, 1].mean())) for part in parts]


def _calibration(runs: Sequence[_Run]) -> Markup:
    figures, details = [], []
    for run in runs:
        result = run.result
        score = f"ECE {_shown('ECE', result.scores['ECE'])} %" if "ECE" in result.scores else None
        figures.append(_reliability(run, result.calibration.sum(0), run.name, score))
        classes = [
            _reliability(run, result.class_calibration[index], result.classes[index])
            for index in _frequent(result)
            if result.class_calibration[index, 2].sum()
        ]
        summary = tag("summary", "Each class, ", _swatch(run.colour), run.name)
        what = tag("p", "Probability of the class at all pixels, and how often they are labelled so.", class_="muted")
        details.append(tag("details", summary, what, tag("div", *classes, class_="figures")))
    legend = _legend([
        (tag("span", class_="key dot"), "mean confidence and share of hits of a bin"),
        (tag("span", class_="key ideal"), "confidence = hits; bars below it are over-confident"),
    ])  # fmt: skip
    note = "How often the predicted class is right, by its probability; below, the share of the pixels in each bin."
    return join(tag("p", note, class_="muted"), legend, tag("div", *figures, class_="figures"), *details)


def _reliability(run: _Run, sums: Tensor, name: str, score: str | None = None) -> Markup:
    says = f"Reliability of {name}: share of hits by confidence"
    chart = reliability_diagram(sums, run.colour, says) if sums[0].sum() else tag("p", "No pixel counts.")
    return tag("figure", tag("figcaption", _swatch(run.colour), name, _small(score)), chart)


def _frequent(result: EvaluationResult) -> list[int]:
    """Return the classes with most labelled pixels, in their own order; all, unless there are very many."""
    return sorted(result.confusion.sum(1).argsort(descending=True)[:_MOST_CLASSES].tolist())


def _confusion(runs: Sequence[_Run]) -> Markup:
    note = (
        "Where the pixels of each class (row) went (column), in percent of the row; hover over a cell for its pixels. "
        "Cells under half a percent are left blank."
    )
    figures = [tag("figure", tag("figcaption", _swatch(run.colour), run.name), *_matrix(run.result)) for run in runs]
    return join(tag("p", note, class_="muted"), tag("div", *figures, class_="matrices"))


def _matrix(result: EvaluationResult) -> list[Markup]:
    counts = result.confusion
    kept = _frequent(result)
    left_out = None
    if len(kept) < len(counts):
        left_out = _small(f"The {len(kept)} most frequent of {len(counts)} classes; shares are of all pixels.")
    names = [result.classes[index] for index in kept]
    swatches = [_swatch(_hex(result.colours[index])) for index in kept]
    head = [tag("th", tag("span", name), scope="col") for name in names]
    rows = []
    for index, name, swatch in zip(kept, names, swatches, strict=True):
        total = int(counts[index].sum())
        cells = [_cell(int(counts[index, column]), total, name, result.classes[column]) for column in kept]
        rows.append(tag("tr", tag("th", name, " ", swatch, scope="row"), *cells))
    table = tag("table", tag("thead", tag("tr", tag("td"), *head)), tag("tbody", *rows), class_="confusion")
    return [left_out or Markup(), tag("div", table, class_="scroll", tabindex=0)]


def _cell(count: int, total: int, label: str, prediction: str) -> Markup:
    share = count / total if total else 0.0
    of = f"{100 * share:.1f} % of {label}" if total else f"no pixel is labelled {label}"
    kinds = [name for name, holds in (("full", share > 0.55), ("diagonal", label == prediction)) if holds]
    return tag(
        "td",
        f"{100 * share:.0f}" if share >= 0.005 else None,
        title=f"label {label}, predicted {prediction}: {count} pixels, {of}",
        style=f"--share: {share:.3f}" if share >= 0.0005 else None,
        class_=" ".join(kinds) or None,
    )


def _worst(runs: Sequence[_Run]) -> Markup:
    note = "The images with the lowest score of their own, lowest first."
    parts = [tag("p", note, class_="muted")]
    for number, run in enumerate(runs):
        result = run.result
        scores = image_scores(result.counts)
        swatches = [(_swatch(_hex(c)), name) for name, c in zip(result.classes, result.colours, strict=True)]
        marks = [(_swatch(_hex(_UNLABELLED)), "not labelled"), (_swatch(_hex(_WRONG)), "wrong")]
        body = [_legend([*swatches, *marks])]
        for name, rows in result.worst.items():
            figures = [_card(result, row, f"{100 * scores[name][row].item():.1f} %") for row in rows]
            body += [tag("h3", f"By {name}: {_IMAGE_SCORES[name]}"), tag("div", *figures, class_="gallery")]
        if not result.worst:
            body = [tag("p", "No pictures were stored.")]
        summary = tag("summary", _swatch(run.colour), run.name)
        parts.append(tag("details", summary, *body, open="" if number == 0 else None))
    return join(*parts)


def _card(result: EvaluationResult, row: int, score: str) -> Markup:
    name = result.images[row]
    panels = [
        tag("div", tag("img", src=source, alt=f"{what} of {name}"), what)
        for what, source in _panels(result.pictures[row], result.colours).items()
    ]
    return tag("figure", tag("figcaption", name, ": ", score), tag("div", *panels, class_="panels"))


def _panels(picture: Picture, colours: Sequence[tuple[int, int, int]]) -> dict[str, str]:
    """Return the image, label, prediction and errors as data that an HTML page holds itself."""
    label, prediction = (
        np.array(Image.open(io.BytesIO(data))).astype(np.int64) for data in (picture.label, picture.prediction)
    )
    palette = np.array([*colours, _UNLABELLED], dtype=np.uint8)
    errors = np.array(Image.open(io.BytesIO(picture.image)).convert("L").convert("RGB"), dtype=np.float64)
    unlabelled, wrong = label == len(colours), label != prediction
    errors[wrong] = 0.25 * errors[wrong] + 0.75 * np.array(_WRONG)
    errors[unlabelled] = _UNLABELLED
    return {
        "image": _data("jpeg", picture.image),
        "label": _data("png", _png(palette[label])),
        "prediction": _data("png", _png(palette[prediction])),
        "errors": _data(
            "jpeg", encode_image(Image.fromarray(errors.astype(np.uint8)), "JPEG", quality=80, subsampling=0)
        ),
    }


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _differences(runs: Sequence[_Run]) -> Markup:
    first, *others = runs
    reasons = {run: _unlike(first.result, run.result) for run in others}
    found = {
        run: score_differences(first.result, run.result, _COUNTED) for run, reason in reasons.items() if not reason
    }
    ends = [abs(end) for each in found.values() for _, *interval in each.values() for end in interval]
    reach = max(ends, default=0.0) or 1.0  # one scale for all pictures
    parts = []
    for run, reason in reasons.items():
        title = tag("h3", _swatch(run.colour), f"{run.name} less {first.name}")
        if reason:
            parts.append(tag("div", title, tag("p", f"Not compared: {reason}.")))
        else:
            rows = [_difference_row(name, interval, reach, run) for name, interval in found[run].items()]
            parts.append(tag("div", title, _table(["Score", "Difference", "Verdict", "Interval"], rows)))
    note = (
        f"Each run less the first one, {first.name}, on the same images, in percentage points. The interval is from "
        "resampling the test images, the same ones for both runs; it says nothing about other seeds of the training."
    )
    return join(tag("p", note, class_="muted"), tag("div", *parts, class_="comparisons"))


def _unlike(first: EvaluationResult, second: EvaluationResult) -> str | None:
    """Say why images cannot be compared one by one, if so."""
    if first.classes != second.classes:
        return "the runs have different classes"
    if first.images != second.images:
        common = len(set(first.images) & set(second.images))
        return (
            f"the runs were tested on different images ({len(first.images)} and {len(second.images)}, "
            f"{common} of them in both)"
        )
    labelled = (result.counts[..., 0] + result.counts[..., 2] for result in (first, second))
    if not torch.equal(*labelled):
        return "the labels of the images differ, by their size or their content"
    return None


def _difference_row(name: str, interval: Range, reach: float, run: _Run) -> Markup:
    value, low, high = interval
    better = name not in _LESS_IS_BETTER
    verdict = "not separable from zero"
    if low > 0 or high < 0:
        verdict = f"{'higher' if low > 0 else 'lower'}, {'better' if better == (low > 0) else 'worse'}"
    return tag(
        "tr",
        tag("th", _label(name), scope="row"),
        tag("td", tag("b", f"{100 * value:+.1f}"), _small(f"{100 * low:+.1f} to {100 * high:+.1f}"), class_="number"),
        tag("td", verdict),
        tag("td", interval_mark(value, low, high, reach, run.colour)),
    )


def _groups(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Put runs with the same classes together."""
    groups: dict[tuple[str, ...], list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.result.classes, []).append(run)
    return list(groups.values())


def _table(heads: Sequence[object], rows: Sequence[Markup]) -> Markup:
    """Return a table that scrolls inside its own box where it is too wide."""
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    return tag("div", tag("table", head, tag("tbody", *rows)), class_="scroll", tabindex=0)


def _run_heads(runs: Sequence[_Run]) -> list[Markup]:
    return [tag("div", _swatch(run.colour), run.name, class_="run") for run in runs]


def _run_legend(runs: Sequence[_Run]) -> Markup:
    return _legend([(_swatch(run.colour), run.name) for run in runs])


def _legend(entries: Iterable[tuple[Markup, str]]) -> Markup:
    return tag("ul", *(tag("li", key, text) for key, text in entries), class_="legend")


def _swatch(colour: str) -> Markup:
    return tag("span", class_="swatch", style=f"background: {colour}")


def _small(text: str | None) -> Markup | None:
    return tag("span", text, class_="small") if text else None


def _label(name: str) -> Markup:
    """Write mIoU_I_worst5 with a raised I and the rest in words."""
    found = re.fullmatch(r"(\w+?)_([DIC])(?:_worst_?(\w+))?", name)
    if not found:
        return join(name)
    base, letter, worst = found.groups()
    words = {None: "", "mean": ", worst cases"}.get(worst, f", worst {worst} %")
    return join(base, tag("sup", letter), words)


def _shown(name: str, value: float) -> str:
    return f"{value:.4f}" if name in _NO_FRACTIONS else f"{100 * value:.1f}"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _png(pixels: np.ndarray) -> bytes:
    return encode_image(Image.fromarray(pixels), "PNG", optimize=True)


def _data(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
