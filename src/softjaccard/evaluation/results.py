"""What a test of a network found, kept in a folder: plain parts as JSON, tensors as safetensors, a few pictures."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from softjaccard.errors import InputError, first_line
from softjaccard.evaluation.decoding import DECODINGS

FORMAT = 2
"""Version of the folder's layout; a reader refuses others."""

PICTURE_SIZE = 320
"""The longer side of a stored picture is at most this, in pixels."""

IMAGE_SCORES = {"IoU": "IoU, mean over the image's classes", "Acc": "share of pixels that are right"}
"""The scores of `image_scores` and what they are."""

_PLAIN = (
    "split", "checkpoint", "epoch", "step", "seed", "versions", "overrides", "settings", "classes", "colours", "images",
    "scores", "worst",
)  # fmt: skip
_TENSORS = ("counts", "confusion", "calibration", "class_calibration")
_AGAIN = "Run the test again: softjaccard test RUN."


@dataclass(frozen=True)
class Picture:
    """An image, its label and its prediction, small and encoded.

    Args:
        image: A JPEG.
        label: A PNG of class ids; C (the number of classes) where nothing counts.
        prediction: A PNG of class ids.
    """

    image: bytes
    label: bytes
    prediction: bytes

    @classmethod
    def encode(cls, image: Tensor, label: Tensor, prediction: Tensor, num_classes: int) -> Picture:
        """Scale and encode.

        Args:
            image: float (3, H, W) in [0, 1].
            label: integers (H, W); ids that are no class mark ignored pixels.
            prediction: integers (H, W).
            num_classes: C.
        """
        height, width = label.shape
        factor = min(1.0, PICTURE_SIZE / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
        scaled = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        narrow = np.uint8 if num_classes <= np.iinfo(np.uint8).max else np.uint16
        known = torch.where((label >= 0) & (label < num_classes), label, num_classes)
        maps = [
            Image.fromarray(ids.cpu().numpy().astype(narrow)).resize(size, Image.Resampling.NEAREST)
            for ids in (known, prediction)
        ]
        return cls(encode_image(scaled, "JPEG", quality=85), *(encode_image(ids, "PNG", optimize=True) for ids in maps))


def encode_image(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an image in one of Pillow's formats."""
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What a test found on N images with C classes.

    Args:
        split: Name of the split that was tested.
        checkpoint: The file that was tested.
        epoch: Epochs that the checkpoint had been trained for, less one.
        step: Steps that it had been trained for.
        seed: Of the run.
        versions: Of the software, by package.
        settings: How images were predicted: the fields of `InferenceSettings`, `decoding` and `temperature`.
        classes: C names.
        colours: C colours (red, green, blue), 0 to 255.
        images: N names, one for each row of `counts`.
        scores: Values by name, as fractions.
        counts: int64 (N, C, 3): tp, fp and fn of each image and class, in pixels.
        confusion: int64 (C, C): pixels by label (row) and prediction (column).
        calibration: float64 (N, 3, bins): pixels, confidence and hits of each image's most probable classes, in bins of
            the confidence.
        class_calibration: float64 (C, 3, bins): the same of each class at all pixels of all images.
        overrides: Settings of the run that were others in the test, as typed.
        sums: Float64, N rows each: what further scores are made of by summing over images, see `sum_scores`; a result
            of an earlier version has none. `losses` (N, 2) are those of `CalibrationSums`, and `class_gaps`
            (N, C, bins) the confidence less the hits of each class at all pixels. Where images have votes, the same and
            `calibration` against their distribution, with the ending `_votes`, and likewise the region statistics that
            `soft_scores` takes.
        worst: Rows of the images with the lowest score of their own, lowest first, by its name in `IMAGE_SCORES`.
        pictures: Of the images in `worst`, by their row.
    """

    split: str
    checkpoint: str
    epoch: int
    step: int
    seed: int
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    images: tuple[str, ...]
    scores: Mapping[str, float]
    counts: Tensor
    confusion: Tensor
    calibration: Tensor
    class_calibration: Tensor
    overrides: tuple[str, ...] = ()
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    worst: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pictures: Mapping[int, Picture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: If shapes, types or names do not.
        """
        classes, images = len(self.classes), len(self.images)
        expected = {"counts": (images, classes, 3), "confusion": (classes, classes)}
        for name, shape in expected.items():
            tensor: Tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != torch.int64:
                raise ValueError(f"{name}: expected int64 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        for name, rows in (("calibration", images), ("class_calibration", classes)):
            tensor = getattr(self, name)
            if tensor.ndim != 3 or tuple(tensor.shape[:2]) != (rows, 3):
                raise ValueError(f"{name}: expected ({rows}, 3, bins), got {tuple(tensor.shape)}")
        for name, tensor in self.sums.items():
            if len(tensor) != images:
                raise ValueError(f"sums: expected a row for each of {images} images, got {len(tensor)} of {name}")
        if len(self.colours) != classes:
            raise ValueError(f"colours: expected one for each of {classes} classes, got {len(self.colours)}")
        if not set(self.worst) <= set(IMAGE_SCORES):
            raise ValueError(f"worst: expected scores out of {', '.join(IMAGE_SCORES)}, got {', '.join(self.worst)}")
        shown = {row for rows in self.worst.values() for row in rows}
        if shown != set(self.pictures) or not shown <= set(range(images)):
            raise ValueError(f"worst: expected rows of the {images} images, with a picture each, got {sorted(shown)}")

    @property
    def image_sums(self) -> dict[str, Tensor]:
        """All that is summed over images."""
        return {"calibration": self.calibration, **self.sums}

    def save(self, folder: Path) -> None:
        """Write the folder whole or not at all; what was there before is replaced."""
        unfinished, before = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")
        for leftover in (unfinished, before):
            shutil.rmtree(leftover, ignore_errors=True)
        (unfinished / "pictures").mkdir(parents=True)
        plain = {"format": FORMAT, **{name: getattr(self, name) for name in _PLAIN}}
        (unfinished / "result.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        tensors = {**{name: getattr(self, name) for name in _TENSORS}, **self.sums}
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        (unfinished / "tensors.safetensors").write_bytes(save(contiguous))
        for row, picture in self.pictures.items():
            for part, path in _picture_paths(unfinished, row).items():
                path.write_bytes(getattr(picture, part))
        if folder.exists():
            folder.rename(before)
        unfinished.rename(folder)
        shutil.rmtree(before, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> EvaluationResult:
        """Read a folder that `save` has written.

        Raises:
            InputError: If a file is missing or damaged, or of another version of this software.
        """
        path = folder / "result.json"
        plain = _read_plain(path)
        try:
            plain["colours"] = tuple((int(r), int(g), int(b)) for r, g, b in plain["colours"])
            plain |= {name: tuple(plain[name]) for name in ("classes", "images", "overrides")}
            plain["scores"] = {name: float(value) for name, value in plain["scores"].items()}
            plain["worst"] = {name: tuple(map(int, rows)) for name, rows in plain["worst"].items()}
            rows = {row for rows in plain["worst"].values() for row in rows}
            sums = _read_tensors(folder / "tensors.safetensors")
            plain |= {name: sums.pop(name) for name in _TENSORS}
            return cls(**plain, sums=sums, pictures={row: _read_picture(folder, row) for row in sorted(rows)})
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} and the files beside it do not fit together: {error}. {_AGAIN}") from error


def save_results(run: Path, results: Mapping[str, EvaluationResult]) -> None:
    """Save the results of a test in a run's folder, in place of those of an earlier test of the same split.

    Args:
        run: The run's folder.
        results: By decoding; the first is the main one.
    """
    main, *others = results
    split = results[main].split
    for decoding in DECODINGS:
        shutil.rmtree(_result_folder(run, split, decoding), ignore_errors=True)
    results[main].save(_result_folder(run, split))
    for decoding in others:
        results[decoding].save(_result_folder(run, split, decoding))


def load_results(run: Path, split: str) -> list[EvaluationResult]:
    """Read what `save_results` has saved, the main one first.

    Raises:
        InputError: If there is no main one, or a file is damaged.
    """
    if not run.is_dir():
        raise InputError(f"There is no run in {run}.")
    main = _result_folder(run, split)
    if not main.is_dir():
        options = "" if split == "test" else f" --split {split}"
        raise InputError(f"{run} has no {split} result: run `softjaccard test {run}{options}` first.")
    others = (_result_folder(run, split, decoding) for decoding in DECODINGS)
    return [EvaluationResult.load(folder) for folder in (main, *others) if folder == main or folder.is_dir()]


def _result_folder(run: Path, split: str, decoding: str | None = None) -> Path:
    return run / "evaluation" / (f"{split}-{decoding}" if decoding else split)


def image_scores(counts: Tensor) -> dict[str, Tensor]:
    """Return the scores of each image by itself, by which the worst are found.

    Args:
        counts: (N, C, 3): tp, fp and fn.

    Returns:
        Float64 (N,), fractions; NaN for an image without labelled pixels:

        - ``IoU``: mean over the classes in the image's label; their mean is mIoU_I;
        - ``Acc``: share of the pixels that are right.

    Example:
        >>> image_scores(torch.tensor([[[8, 0, 2], [0, 2, 0]]]))
        {'IoU': tensor([0.8000], dtype=torch.float64), 'Acc': tensor([0.8000], dtype=torch.float64)}
    """
    hits, labelled = counts[..., 0].double(), (counts[..., 0] + counts[..., 2]).double()
    present = labelled > 0
    iou = torch.where(present, hits / counts.sum(-1), 0.0)
    return {"IoU": iou.sum(-1) / present.sum(-1), "Acc": hits.sum(-1) / labelled.sum(-1)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. {_AGAIN}") from error


def _read_plain(path: Path) -> dict[str, Any]:
    """Return the fields of `result.json`."""
    data = _read(path)
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {first_line(error)}. {_AGAIN}") from error
    if not isinstance(plain, dict) or "format" not in plain:
        raise InputError(f"{path} is not the result of a test. {_AGAIN}")
    if plain["format"] != FORMAT:
        raise InputError(f"{path} has format {plain['format']}, but this version reads format {FORMAT}. {_AGAIN}")
    plain.setdefault("overrides", [])  # earlier results of this format have none
    if missing := [name for name in _PLAIN if name not in plain]:
        raise InputError(f"{path} is damaged: it lacks {', '.join(missing)}. {_AGAIN}")
    return {name: plain[name] for name in _PLAIN}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    data = _read(path)
    try:
        tensors = load(data)
    except Exception as error:  # a damaged file can make safetensors stumble over anything
        raise InputError(f"{path} is damaged: {first_line(error)}. {_AGAIN}") from error
    if missing := [name for name in _TENSORS if name not in tensors]:
        raise InputError(f"{path} is damaged: it lacks {', '.join(missing)}. {_AGAIN}")
    return tensors


def _picture_paths(folder: Path, row: int) -> dict[str, Path]:
    """Return the file of each part of a picture."""
    pictures = folder / "pictures"
    return {
        "image": pictures / f"{row}.jpg",
        "label": pictures / f"{row}_label.png",
        "prediction": pictures / f"{row}_prediction.png",
    }


def _read_picture(folder: Path, row: int) -> Picture:
    parts = {}
    for part, path in _picture_paths(folder, row).items():
        parts[part] = _read(path)
        try:
            Image.open(io.BytesIO(parts[part])).load()
        except (OSError, SyntaxError) as error:  # Pillow's answer to a damaged PNG
            raise InputError(f"{path} is damaged: {first_line(error)}. {_AGAIN}") from error
    return Picture(**parts)
