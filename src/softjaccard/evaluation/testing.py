"""The command `softjaccard test`: a trained network is scored on the images of a split, and the scores are kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn

from softjaccard.data.module import SegmentationData
from softjaccard.errors import InputError
from softjaccard.evaluation.decoding import check_decoding
from softjaccard.evaluation.inference import InferenceSettings
from softjaccard.evaluation.results import EvaluationResult, save_results
from softjaccard.evaluation.scoring import Scorer, TemperatureFit
from softjaccard.evaluation.temperature import Temperature
from softjaccard.files import write_text

_PRINTED = ("mIoU_D", "mIoU_I", "mIoU_C", "mIoU_I_worst5", "mIoU_C_worst5", "mDice_D", "Acc")
_PRINTED_OF_PROBABILITIES = ("ECE", "SCE", "Brier", "NLL")
_PRINTED_OF_VOTES = ("mSoftIoU_D", "mSoftDice_D", "mSoftDice_I", "TV", "ECE", "Brier", "NLL", "KL")


@dataclass(frozen=True)
class EvaluationSettings:
    """How the images of a split are predicted.

    Attributes:
        split: Which one.
        inference: How logits are made.
        decodings: How they become classes, as in `decode`; each is scored, and the first is the main one.
        temperature: Logits are divided by it first; "fit" fits it to the validation images.

    Raises:
        InputError: If a decoding cannot be used or is named twice, or the temperature cannot be used.
    """

    split: Literal["test", "val"] = "test"
    inference: InferenceSettings = InferenceSettings()  # noqa: RUF009 (frozen)
    decodings: tuple[str, ...] = ("argmax",)
    temperature: float | Literal["fit"] = 1.0

    def __post_init__(self) -> None:
        """See the class."""
        for decoding in self.decodings:
            check_decoding(decoding)
        if len(set(self.decodings)) < len(self.decodings):
            raise InputError(f"decoding: each may be named once, but given were {', '.join(self.decodings)}.")
        if self.temperature == "fit":
            if self.split == "val":
                raise InputError(
                    "temperature: fit goes by the validation images, which then cannot show what it is worth; "
                    "choose another split, or give a number."
                )
        elif not 0 < self.temperature < torch.inf:
            raise InputError(f"temperature is {self.temperature}, but must be above 0.")


def evaluate(
    network: nn.Module,
    loss: nn.Module | None,
    data: SegmentationData,
    trainer: Trainer,
    folder: Path,
    settings: EvaluationSettings,
    about: Mapping[str, Any],
) -> None:
    """Score a network, print the main scores, and keep all in a run's folder.

    That is in `SPLIT.json`; and for `softjaccard report` in `evaluation/SPLIT`, with further decodings in
    `evaluation/SPLIT-DECODING`. Those of an earlier test are replaced.

    Args:
        network: With a method `predict` from images to logits.
        loss: From logits and labels to a scalar, if there is one.
        data: The images.
        trainer: Says on which devices, and in which precision.
        folder: The run's.
        settings: How images are predicted.
        about: The fields `checkpoint`, `epoch`, `step`, `seed`, `versions` and `overrides` of an `EvaluationResult`.

    Raises:
        InputError: If data are missing or do not fit the network, or its output is not finite.
    """
    split = settings.split
    fitted: Temperature | None = None
    if settings.temperature == "fit":
        data.setup("validate")
        fitting = TemperatureFit(network, data, "val", settings.inference)
        trainer.validate(fitting, data, verbose=False)
        fitted = fitting.fitted
    temperature = fitted.value if fitted else float(settings.temperature)
    stage, loop = ("test", trainer.test) if split == "test" else ("validate", trainer.validate)
    data.setup(stage)
    scorer = Scorer(
        network,
        data,
        split,
        settings.inference,
        decodings=settings.decodings,
        temperature=temperature,
        loss=loss,
    )
    loop(scorer, data, verbose=False)
    if not trainer.is_global_zero:
        return
    how = {**asdict(settings.inference), "temperature": temperature}
    results = {
        decoding: EvaluationResult(**about, **found, settings={**how, "decoding": decoding})
        for decoding, found in scorer.found.items()
    }
    if not results:
        raise InputError(
            f"No image of the {split} split has been scored: check trainer.limit_{split}_batches, and that "
            "trainer.strategy is not one that spawns processes."
        )
    record = folder / f"{split}.json"
    try:
        save_results(folder, results)
        write_text(record, json.dumps(_record(results, fitted), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"The results cannot be written to {folder}: {error}") from error
    sys.stdout.write(_summary(results, fitted))
    next_command = f"softjaccard report {folder}" + (f" --split {split}" if split != "test" else "")
    sys.stdout.write(f"Written to {record}.\nNext: {next_command}\n")


def _record(results: Mapping[str, EvaluationResult], fitted: Temperature | None) -> dict[str, Any]:
    main, *others = results.values()
    return {
        "split": main.split,
        "scores": main.scores,
        "other_decodings": {result.settings["decoding"]: result.scores for result in others},
        "absent": _absent(main),
        "settings": main.settings,
        "temperature_fit": None if fitted is None else asdict(fitted),
        **{name: getattr(main, name) for name in ("checkpoint", "epoch", "step", "seed", "versions", "overrides")},
    }


def _absent(result: EvaluationResult) -> list[str]:
    """The classes that are neither labelled nor predicted."""
    return [name for name in result.classes if f"IoU_D/{name}" not in result.scores]


def _summary(results: Mapping[str, EvaluationResult], fitted: Temperature | None) -> str:
    """Write the main scores and the IoU of each class by decoding, then calibration by temperature."""
    main = next(iter(results.values()))
    scores = [result.scores for result in results.values()]
    names = [*_PRINTED, *(f"IoU_D/{name}" for name in main.classes if any(f"IoU_D/{name}" in each for each in scores))]
    lines = _table({name: [each.get(name) for each in scores] for name in names}, list(results))
    for decoding, result in results.items():
        if absent := _absent(result):
            by = f" by {decoding}" if len(results) > 1 else ""
            lines.append(f"Neither labelled nor predicted{by}, and left out of the means: {', '.join(absent)}.")
    temperature = main.settings["temperature"]
    suffixes = {1.0: "_unscaled", temperature: ""}  # one column where these are the same
    of_votes = [f"{name}_votes" for name in _PRINTED_OF_VOTES]
    of_votes += [f"SoftDice_D_votes/{name}" for name in main.classes]
    rows = {
        name: [main.scores.get(f"{name}{suffix}") for suffix in suffixes.values()]
        for name in (*_PRINTED_OF_PROBABILITIES, *of_votes)
        if name in main.scores
    }
    if "loss" in main.scores:
        rows["loss"] = [main.scores["loss"]]
    lines += _table(rows, [f"T = {value:.6g}" for value in suffixes])
    if fitted and fitted.at_bound:
        lines.append(f"The temperature is the {fitted.at_bound} bound of those tried, and no optimum.")
    return "".join(f"{line}\n" for line in lines)


def _table(rows: Mapping[str, Sequence[float | None]], heads: Sequence[str]) -> list[str]:
    """Write a line for each row, below the heads of the columns if there is more than one."""
    first = max(24, *(len(name) + 1 for name in rows))
    widths = [max(8, len(head) + 2) for head in heads]
    lines = [" " * first + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, values in rows.items():
        cells = ("-" if value is None else f"{value:.4f}" for value in values)
        lines.append(
            f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
        )
    return lines if len(heads) > 1 else lines[1:]
