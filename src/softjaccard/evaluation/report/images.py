"""Section of the report: the worst images with label, prediction and errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softjaccard.evaluation.report.markup import Markup, join, tag
from softjaccard.evaluation.report.parts import Run, hex_colour, legend, swatch
from softjaccard.evaluation.results import IMAGE_SCORES, EvaluationResult, Picture, encode_image, image_scores

_WRONG = (213, 94, 0)
_UNLABELLED = (0, 0, 0)


def worst(runs: Sequence[Run]) -> Markup:
    """Show the stored pictures of each run; those of the first are unfolded."""
    note = "The images with the lowest score of their own, lowest first."
    parts = [tag("p", note, class_="muted")]
    for number, run in enumerate(runs):
        result = run.result
        scores = image_scores(result.counts)
        swatches = [(swatch(hex_colour(c)), name) for name, c in zip(result.classes, result.colours, strict=True)]
        marks = [(swatch(hex_colour(_UNLABELLED)), "not labelled"), (swatch(hex_colour(_WRONG)), "wrong")]
        body = [legend([*swatches, *marks])]
        for name, rows in result.worst.items():
            figures = [_card(result, row, f"{100 * scores[name][row].item():.1f} %") for row in rows]
            body += [tag("h3", f"By {name}: {IMAGE_SCORES[name]}"), tag("div", *figures, class_="gallery")]
        if not result.worst:
            body = [tag("p", "No pictures were stored.")]
        summary = tag("summary", swatch(run.colour), run.name)
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
    overlay = Image.fromarray(errors.astype(np.uint8))
    return {
        "image": _data("jpeg", picture.image),
        "label": _data("png", _png(palette[label])),
        "prediction": _data("png", _png(palette[prediction])),
        "errors": _data("jpeg", encode_image(overlay, "JPEG", quality=80, subsampling=0)),
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return encode_image(Image.fromarray(pixels), "PNG", optimize=True)


def _data(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
