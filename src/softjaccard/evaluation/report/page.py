"""The command ``softjaccard report``: what tests of one or more runs found, in one HTML file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import softjaccard
from softjaccard.errors import InputError
from softjaccard.evaluation.report.calibration import calibration
from softjaccard.evaluation.report.confusion import confusion
from softjaccard.evaluation.report.images import worst
from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.report.parts import Run, swatch, table
from softjaccard.evaluation.report.scores import class_bars, differences, scores
from softjaccard.evaluation.report.training import curves
from softjaccard.evaluation.results import EvaluationResult, load_results
from softjaccard.files import write_text

#: Colours of the runs: Okabe and Ito's, in an order in which neighbours differ most; a ninth run begins anew.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#B8A800")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(folders: Sequence[Path], output: Path, split: str = "test") -> None:
    """Write one HTML file about one or more runs that have been tested.

    Args:
        folders: The runs' folders. The first one is what the others are compared with.
        output: The HTML file; its folder is made if need be.
        split: Of which the results are shown.

    Raises:
        InputError: If a run has no test result, one of its files is damaged, or the output cannot be written.
    """
    page = _page(_read_runs(folders, split))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise InputError(f"--output: {output} cannot be written: {error.strerror}.") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or their paths where names would be the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _read_runs(folders: Sequence[Path], split: str) -> list[Run]:
    """Read the runs, each followed by its further decodings, as if these were runs."""
    runs: list[Run] = []
    for name, folder in zip(_names(folders), folders, strict=True):
        for number, result in enumerate(load_results(folder, split)):
            colour = RUN_COLOURS[len(runs) % len(RUN_COLOURS)]
            history = None if number else _read_history(folder / "metrics.csv")
            shown = f"{name} ({result.settings['decoding']})" if number else name
            runs.append(Run(shown, colour, result, history, again=number > 0))
    return runs


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


def _page(runs: Sequence[Run]) -> Markup:
    trained = [run for run in runs if not run.again]
    sections = {
        "Scores": scores(runs),
        "Differences": differences(runs) if len(runs) > 1 else None,
        "IoU of each class": class_bars(runs),
        "Training": curves(trained),
        "Calibration": calibration(trained),
        "Confusion": confusion(runs),
        "Worst images": worst(runs),
    }
    shown = {title: body for title, body in sections.items() if body is not None}
    anchors = {title: title.lower().replace(" ", "-") for title in shown}
    title = f"Test of {runs[0].name}" if len(trained) == 1 else f"Tests of {len(trained)} runs"
    style = Markup((files("softjaccard.evaluation.report") / "style.css").read_text(encoding="utf-8"))
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


def _overview(runs: Sequence[Run]) -> Markup:
    """Return the table of what was tested."""
    rows = [
        tag(
            "tr",
            tag("th", swatch(run.colour), run.name, scope="row", class_="run"),
            tag("td", f"{len(run.result.images)} {run.result.split} images, {len(run.result.classes)} classes"),
            tag("td", f"{Path(run.result.checkpoint).name}, epoch {run.result.epoch + 1}, step {run.result.step}"),
            tag("td", run.result.seed),
            tag("td", _inference(run.result)),
        )
        for run in runs
    ]
    return table(["Run", "Tested on", "Checkpoint", "Seed", "Predicted"], rows)


def _inference(result: EvaluationResult) -> str:
    """Say how images were predicted."""
    settings = result.settings
    window, scales, temperature = settings["window"], settings["scales"], settings["temperature"]
    parts = [
        f"windows of {window[0]} x {window[1]}, overlap {100 * settings['overlap']:.0f} %"
        if window
        else "whole images",
        f"at scales {', '.join(map(str, scales))}" if list(scales) != [1] else "",
        "also mirrored" if settings["flip"] else "",
        settings["decoding"],
        f"temperature {temperature:.4g}" if temperature != 1 else "",
        f"with {' '.join(result.overrides)}" if result.overrides else "",
    ]
    return "; ".join(part for part in parts if part)


def _versions(runs: Sequence[Run]) -> list[Markup]:
    """Say what the runs were tested with, once for those that are alike."""
    runs_by_versions: dict[str, list[str]] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.result.versions.items())
        runs_by_versions.setdefault(versions, []).append(run.name)
    return [tag("div", f"Tested with {what}: {', '.join(names)}.") for what, names in runs_by_versions.items()]
