"""What the sections of the report are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.results import EvaluationResult

MOST_CLASSES = 40
"""Of a confusion matrix, and with a reliability diagram of their own; nobody would read more."""
_NO_FRACTIONS = ("NLL", "KL", "loss")


@dataclass(frozen=True, eq=False)
class Run:
    """A run that has been tested, as the report shows it."""

    name: str
    colour: str
    result: EvaluationResult
    history: Mapping[str, list[tuple[float, float]]] | None
    """(step, value) by column of metrics.csv; None without that file."""
    again: bool = False
    """Whether these are the probabilities of the run before, decoded in another way."""


def table(heads: Sequence[object], rows: Sequence[Markup]) -> Markup:
    """Return a table that scrolls inside its own box where it is too wide."""
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    return tag("div", tag("table", head, tag("tbody", *rows)), class_="scroll", tabindex=0)


def legend(entries: Iterable[tuple[Markup, str]]) -> Markup:
    """Return a list of keys and what they stand for."""
    return tag("ul", *(tag("li", key, text) for key, text in entries), class_="legend")


def swatch(colour: str) -> Markup:
    """Return a small square of a colour."""
    return tag("span", class_="swatch", style=f"background: {colour}")


def small(text: str | None) -> Markup | None:
    """Return text in small grey letters; None if there is none."""
    return tag("span", text, class_="small") if text else None


def score_label(name: str) -> Markup:
    """Write mIoU_I_worst5 with a raised I and the rest in words."""
    found = re.fullmatch(r"([A-Za-z]+?)(?:_([DIC]))?((?:_\w+)?)", name)
    if not found:
        return join(name)
    base, letter, rest = found.groups()
    words = re.sub(r"worst([\d.]+)", r"worst \1 %", rest.replace("_worst_mean", "_worst cases"))
    words = re.sub(r"(\d)px", r"\1 px", words).replace("_", " ").strip()
    return join(base, letter and tag("sup", letter), words and f", {words}")


def is_fraction(name: str) -> bool:
    """Whether a score is shown in percent."""
    return not name.startswith(_NO_FRACTIONS)


def score_text(name: str, value: float, sign: str = "") -> str:
    """Write a score in percent, or with four digits if it is no fraction; with the sign "+" that of a difference."""
    return f"{100 * value:{sign}.1f}" if is_fraction(name) else f"{value:{sign}.4f}"


def frequent_classes(result: EvaluationResult) -> list[int]:
    """Return the classes with most labelled pixels, in their own order; all, unless there are very many."""
    return sorted(result.confusion.sum(1).argsort(descending=True)[:MOST_CLASSES].tolist())
