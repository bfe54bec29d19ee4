"""Predictions for image files: index masks, colour masks and probabilities, in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from torch import Tensor

from softjaccard.data.colours import distinct_colours
from softjaccard.data.images import read_image
from softjaccard.errors import InputError, first_line
from softjaccard.evaluation.decoding import check_decoding, decode
from softjaccard.evaluation.inference import InferenceSettings, Network, predict_logits
from softjaccard.files import write_whole

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NAMED_FAILURES = 3


def predict_images(
    network: Network,
    inputs: Sequence[Path],
    output: Path,
    *,
    settings: InferenceSettings = InferenceSettings(),  # noqa: B008 (frozen)
    decoding: str = "argmax",
    classes: Sequence[str] = (),
    colours: Sequence[Sequence[int]] = (),
    probabilities: bool = False,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Predict images and write the results.

    For the image `a/b.jpg` of an input folder, or for `b.jpg` given itself, `output` gets `masks/a/b.png` (or `b.png`)
    with class ids, `colours/a/b.png`, and where wanted `probabilities/a/b.safetensors`; and once `predict.json`, which
    says how they were made, which class has which id and colour, and which images failed. Every file is written whole
    or not at all.

    Args:
        network: As in `predict_logits`, on the device.
        inputs: Image files, and folders that are searched for images with all their folders.
        output: The folder for the results, made if need be.
        settings: How logits are made.
        decoding: How they become classes, as in `decode`.
        classes: Names of the classes, for `predict.json`.
        colours: Of the classes; by default drawn up by `distinct_colours`.
        probabilities: Write them too.
        device: Where the network is.
        overwrite: Replace results that are there.
        record: What else `predict.json` shall have.

    Raises:
        InputError: Before anything is predicted: if an input is missing, no image, or holds none, two would give the
            same result, results are there already, or the decoding cannot be used. At the end, when all other images
            are done: if some failed, such as unreadable ones.
    """
    check_decoding(decoding)
    images = find_images(inputs)
    _check_output(images, inputs, output, overwrite=overwrite)
    failures: dict[str, str] = {}
    palette: NDArray[np.uint8] | None = None
    console = Console(stderr=True)
    for name, source in track(images.items(), "Predicting", console=console, disable=not console.is_terminal):
        try:
            logits, ids = _predict(network, source, settings, decoding, device)
        except InputError as error:
            failures[str(source)] = str(error)
            for stale in result_files(output, name).values():  # of an earlier call, which this one replaces
                stale.unlink(missing_ok=True)
            continue
        if palette is None:
            palette = _palette(colours, classes, logits.shape[1])
        _write_results(result_files(output, name), logits, ids, palette, probabilities=probabilities)
    result = {
        **(record or {}),
        "settings": {**asdict(settings), "decoding": decoding},
        "classes": _legend(classes, palette),
        "images": {name: str(source) for name, source in images.items() if str(source) not in failures},
        "failures": failures,
    }
    text = json.dumps(result, indent=2) + "\n"
    _write(output / "predict.json", lambda path: path.write_text(text, encoding="utf-8"))
    sys.stdout.write(f"{len(images) - len(failures)} of {len(images)} images are predicted, in {output}.\n")
    if failures:
        first = " ".join([*failures.values()][:_NAMED_FAILURES])
        more = len(failures) - _NAMED_FAILURES
        rest = f" And {more} more, see {output / 'predict.json'}." if more > 0 else ""
        raise InputError(f"{len(failures)} of {len(images)} images failed: {first}{rest}")


def result_files(output: Path, name: str) -> dict[str, Path]:
    """Return the paths of an image's results: masks, colours and probabilities.

    Example:
        >>> [path.as_posix() for path in result_files(Path("out"), "a/b").values()]
        ['out/masks/a/b.png', 'out/colours/a/b.png', 'out/probabilities/a/b.safetensors']
    """
    endings = {"masks": "png", "colours": "png", "probabilities": "safetensors"}
    return {kind: output / kind / f"{name}.{ending}" for kind, ending in endings.items()}


def find_device(name: str) -> torch.device:
    """Return the device of a name; for "auto" the accelerator, or the CPU if there is none.

    Raises:
        InputError: If there is no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch's own ways to say so
        raise InputError(f"device '{name}' cannot be used here: {first_line(error)}") from error
    return device


def find_images(inputs: Sequence[Path]) -> dict[str, Path]:
    """Return the images in files and folders by their name in the results, in the inputs' and then alphabetical order.

    Raises:
        InputError: If an input is missing, a file of another kind, or a folder without images, or two images have the
            same name.
    """
    images: dict[str, Path] = {}
    for given in inputs:
        for path in _search(given):
            name = (path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("").as_posix()
            if name in images:
                raise InputError(
                    f"{images[name]} and {path} would both give the result {name}.png: rename one, or predict them "
                    "into different folders."
                )
            images[name] = path
    return images


def _search(given: Path) -> list[Path]:
    if given.is_file():
        if given.suffix.lower() not in IMAGE_ENDINGS:
            raise InputError(f"{given} is no image file; expected one that ends with {', '.join(IMAGE_ENDINGS)}.")
        return [given]
    if not given.is_dir():
        raise InputError(f"There is no file or folder {given}.")
    found = sorted(path for path in given.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
    if not found:
        raise InputError(f"There are no images in the folder {given}; looked for *{', *'.join(IMAGE_ENDINGS)}.")
    return found


def _check_output(images: Mapping[str, Path], inputs: Sequence[Path], output: Path, *, overwrite: bool) -> None:
    for given in inputs:
        if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
            raise InputError(f"--output {output} lies in the input {given}, where masks would be taken for images.")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is no folder.")
    results = [output / "predict.json", *(path for name in images for path in result_files(output, name).values())]
    existing = next((path for path in results if path.exists()), None)
    if existing and not overwrite:
        raise InputError(f"{existing} is there already: choose another --output, or --overwrite it.")


def _predict(
    network: Network, source: Path, settings: InferenceSettings, decoding: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return an image's logits (1, C, H, W) and classes (1, H, W)."""
    image = read_image(source)[None]
    try:
        logits = predict_logits(network, image.to(device), settings)
        if not logits.isfinite().all():
            raise InputError(f"The network's output for {source} is not finite.")
        return logits, decode(logits, decoding)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{source} does not fit in the device's memory: give a --window, or a smaller one.") from error


def _palette(colours: Sequence[Sequence[int]], names: Sequence[str], count: int) -> NDArray[np.uint8]:
    for what, given in (("colours", colours), ("names", names)):
        if given and len(given) != count:
            raise InputError(f"There are {len(given)} {what} for the network's {count} classes.")
    return np.array(colours or distinct_colours(count), dtype=np.uint8)


def _legend(names: Sequence[str], palette: NDArray[np.uint8] | None) -> list[dict[str, Any]]:
    """Return each class's id, name and colour; none where no image could be predicted."""
    if palette is None:
        return []
    names = names or [str(index) for index in range(len(palette))]
    return [
        {"id": index, "name": name, "colour": colour}
        for index, (name, colour) in enumerate(zip(names, palette.tolist(), strict=True))
    ]


def _write_results(
    files: Mapping[str, Path], logits: Tensor, classes: Tensor, palette: NDArray[np.uint8], *, probabilities: bool
) -> None:
    ids = classes[0].cpu().numpy().astype(np.uint8 if logits.shape[1] <= 256 else np.uint16)
    _write(files["colours"], Image.fromarray(palette[ids]).save)
    if probabilities:
        tensors = {"probabilities": logits[0].softmax(0).half().cpu().contiguous()}
        _write(files["probabilities"], lambda path: path.write_bytes(save(tensors)))
    else:
        files["probabilities"].unlink(missing_ok=True)  # of an earlier prediction
    _write(files["masks"], Image.fromarray(ids).save)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
