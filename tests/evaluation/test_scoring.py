"""Scores of a split against the functions they are made of, on images of different sizes that share batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from softjaccard import CrossEntropyLoss, RaterLabel
from softjaccard.data.colours import distinct_colours
from softjaccard.data.module import SegmentationData, Split
from softjaccard.data.votes import majority_vote
from softjaccard.errors import InputError
from softjaccard.evaluation import scoring
from softjaccard.evaluation.decoding import decode
from softjaccard.evaluation.inference import InferenceSettings, predict_logits
from softjaccard.evaluation.report.intervals import sum_scores
from softjaccard.evaluation.scoring import Scorer, TemperatureFit
from softjaccard.evaluation.temperature import fit_temperature
from softjaccard.metrics import (
    CalibrationError,
    SoftScores,
    boundary_counts,
    calibration_scores,
    calibration_sums,
    fine_grained_iou,
    image_counts,
    table_score,
)

SIZES = ((20, 31), (33, 17), (24, 24), (9, 40), (32, 32))
CLASSES = 4


class Blocks(Dataset[dict[str, Tensor]]):
    """Noise whose first channel hints at a label of blocks; the last class never occurs."""

    classes = ("ground", "disc", "ring", "unseen")
    num_classes = CLASSES
    ignore_index = 255

    def __init__(self, sizes: Sequence[tuple[int, int]], seed: int) -> None:
        self.sizes, self.seed = sizes, seed

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        height, width = self.sizes[index]
        generator = torch.Generator().manual_seed(self.seed + index)
        label = torch.randint(0, 3, (height // 5 + 1, width // 5 + 1), generator=generator)
        label = label.repeat_interleave(5, 0).repeat_interleave(5, 1)[:height, :width].clone()
        image = torch.rand(3, height, width, generator=generator)
        image[0] = 0.5 * image[0] + label / 5
        label[:2] = 255
        return {"image": image, "label": label}


class BlocksData(SegmentationData):
    def dataset(self, split: Split) -> Blocks:
        return Blocks(SIZES, 100) if split == "test" else Blocks(SIZES[1:4], 200)


class RatedBlocks(Blocks):
    """The same images with the votes of three annotators; the last one has left out the lower half."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        votes = sample["label"].repeat(3, 1, 1)
        votes[1, :, 8:] = votes[1, :, 8:].roll(3, -1)
        votes[2] = (votes[2] + (votes[2] < 2)).where(votes[2] < 255, 255)
        votes[2, votes.shape[1] // 2 :] = 255
        return {**sample, "votes": votes.byte(), "label": majority_vote(votes, CLASSES, 255)}


class RatedBlocksData(SegmentationData):
    def dataset(self, split: Split) -> RatedBlocks:
        return RatedBlocks(SIZES, 100)


class Pointwise(nn.Module):
    """Logits of a pixel that depend on that pixel alone, so that padding changes none; too sure of themselves."""

    def predict(self, image: Tensor) -> Tensor:
        centres = torch.tensor([0.25, 0.45, 0.65, 5.0]).view(-1, 1, 1)
        return -100 * (image[:, :1] - centres) ** 2


def quiet(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def blocks(batch_size: int, kind: type[SegmentationData] = BlocksData) -> SegmentationData:
    data = kind(evaluation_batch_size=batch_size, pad_multiple=16)
    data.setup("validate")
    data.setup("test")
    return data


def score(batch_size: int = 3, split: Split = "test", **options: Any) -> dict[str, dict[str, Any]]:
    settings = options.pop("settings", InferenceSettings())
    options = {"decodings": ["argmax"], "temperature": 1.0, "loss": None, **options}
    data = blocks(batch_size, options.pop("kind", BlocksData))
    scorer = Scorer(Pointwise(), data, split, settings, **options)
    trainer = quiet()
    (trainer.test if split == "test" else trainer.validate)(scorer, data, verbose=False)
    return scorer.found


def expected_images(split: Split = "test") -> list[tuple[Tensor, Tensor]]:
    """Logits (1, C, H, W) and labels (1, H, W), image by image."""
    samples = (
        sample for dataset in [BlocksData().dataset(split)] for sample in map(dataset.__getitem__, range(len(dataset)))
    )
    return [(Pointwise().predict(s["image"][None]), s["label"][None]) for s in samples]


def expected_scores(temperature: float = 1.0, decoding: str = "argmax", split: Split = "test") -> dict[str, Tensor]:
    images = [(logits / temperature, label) for logits, label in expected_images(split)]
    options: dict[str, Any] = {"ignore_index": 255}
    maps = [(decode(logits, decoding), label) for logits, label in images]
    counts = torch.cat([image_counts(*pair, CLASSES, **options) for pair in maps])
    near = torch.cat([boundary_counts(*pair, CLASSES, 3, **options) for pair in maps])
    sums = [calibration_sums(*pair, from_logits=True, boundary_kernel_size=3, **options) for pair in images]
    total = sums[0]
    for some in sums[1:]:
        total = type(total)(total.cells + some.cells, total.losses + some.losses)
    return {
        **fine_grained_iou(counts),
        **calibration_scores(total.over(1).over(0)),
        **{f"{name}_boundary_2px": value for name, value in calibration_scores(total.at(0, 1)).items()},
        "ECE_I": torch.stack([calibration_scores(some.over(1).over(0))["ECE"] for some in sums]).mean(),
        "BoundaryIoU_D_3px": table_score(near, "mIoU_D"),
        "BoundaryIoU_I_3px": table_score(near, "mIoU_I"),
    }


def assert_scores(found: dict[str, float], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        if value.ndim == 0:
            assert found[name] == pytest.approx(value.item(), abs=1e-9), name


def expected_of_votes(temperature: float) -> dict[str, float]:
    options: dict[str, Any] = {"ignore_index": 255, "from_logits": True}
    soft, calibration = SoftScores(CLASSES, **options), CalibrationError(CLASSES, **options)
    for sample in (RatedBlocks(SIZES, 100)[index] for index in range(len(SIZES))):
        logits = Pointwise().predict(sample["image"][None]) / temperature
        for metric in (soft, calibration):
            metric.update(logits, RaterLabel(sample["votes"][None].long()))
    return {name: score.item() for name, score in (soft.compute() | calibration.compute()).items() if score.ndim == 0}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_votes_are_scored_beside_the_majority(batch_size: int, temperature: float) -> None:
    result = score(batch_size, kind=RatedBlocksData, temperature=temperature)["argmax"]
    found = {name: value for name, value in result["scores"].items() if "_votes" in name}
    expected = {f"{name}_votes": value for name, value in expected_of_votes(temperature).items()}
    if temperature != 1:
        expected |= {f"{name}_votes_unscaled": value for name, value in expected_of_votes(1).items()}
    by_class = {name: found.pop(name) for name in list(found) if "/" in name}
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(found) == (15 if temperature == 1 else 30)
    suffixes = ("",) if temperature == 1 else ("", "_unscaled")
    for suffix, family in product(suffixes, ("IoU", "Dice")):
        values = [by_class.pop(f"Soft{family}_D_votes/{name}{suffix}") for name in ("ground", "disc", "ring")]
        assert sum(values) / 3 == pytest.approx(found[f"mSoft{family}_D_votes{suffix}"])
    assert not by_class
    # The rest is that of the majority, and of data without votes.
    labels = torch.cat([RatedBlocks(SIZES, 100)[index]["label"].flatten() for index in range(len(SIZES))])
    assert result["counts"][..., [0, 2]].sum() == (labels != 255).sum()
    assert found["ECE_votes"] != pytest.approx(result["scores"]["ECE"], abs=1e-3)
    plain = score(batch_size, temperature=temperature)["argmax"]["scores"]
    assert {name for name in result["scores"] if "_votes" not in name} == plain.keys()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_sums_kept_of_images_give_the_scores(temperature: float) -> None:
    result = score(3, kind=RatedBlocksData, temperature=temperature)["argmax"]
    sums = {"calibration": result["calibration"], **result["sums"]}
    found = {name: value.item() for name, value in sum_scores(sums).items()}
    assert found == pytest.approx({name: result["scores"][name] for name in found}, rel=1e-12)
    assert {"SCE", "Brier", "NLL", "TV_votes", "NLL_votes", "mSoftDice_C_votes"} <= found.keys()
    # Rows are in the order of the images.
    metric = SoftScores(CLASSES, ignore_index=255, from_logits=True)
    sample = RatedBlocks(SIZES, 100)[3]
    logits = Pointwise().predict(sample["image"][None]) / temperature
    metric.update(logits, RaterLabel(sample["votes"][None].long()))
    options: dict[str, Any] = {"from_logits": True, "ignore_index": 255}
    one = calibration_scores(calibration_sums(logits, sample["label"][None], **options).at(0, 0))
    of_image = {name: value.item() for name, value in sum_scores({name: sums[name][3:4] for name in sums}).items()}
    expected = {f"{name}_votes": value.item() for name, value in metric.compute().items() if value.ndim == 0}
    expected |= {name: one[name].item() for name in ("ECE", "MCE", "SCE", "Brier", "NLL")}
    assert {name: of_image[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert score(3)["argmax"]["sums"].keys() == {"losses", "class_gaps"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_decoding_is_scored_and_padding_has_no_say(batch_size: int) -> None:
    decodings = ["rankseg-iou", "argmax", "rankseg-dice"]
    found = score(batch_size, decodings=decodings)
    assert list(found) == decodings
    for decoding, result in found.items():
        assert_scores(result["scores"], expected_scores(decoding=decoding))
        assert "loss" not in result["scores"]
        for row, picture in result["pictures"].items():
            logits, label = expected_images()[row]
            assert (
                picture.prediction
                == type(picture)
                .encode(torch.zeros(3, *label.shape[1:]), label[0], decode(logits, decoding)[0], CLASSES)
                .prediction
            )
    first, second = (found[decoding] for decoding in decodings[:2])
    assert not torch.equal(first["counts"], second["counts"])
    assert torch.equal(first["calibration"], second["calibration"])


def test_classes_that_never_occur_have_no_score() -> None:
    result = score()["argmax"]
    assert [name for name in result["scores"] if "/" in name] == ["IoU_D/ground", "IoU_D/disc", "IoU_D/ring"]
    assert result["colours"] == distinct_colours(CLASSES)
    assert (result["images"], result["split"]) == (("0", "1", "2", "3", "4"), "test")


def test_the_worst_images_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_WORST", 3)
    result = score()["argmax"]
    hits, labelled = result["counts"][..., 0].sum(1), result["counts"][..., [0, 2]].sum((1, 2))
    accuracy = (hits / labelled).tolist()
    assert list(result["worst"]["Acc"]) == sorted(range(len(SIZES)), key=accuracy.__getitem__)[:3]
    assert set(result["pictures"]) == {*result["worst"]["Acc"], *result["worst"]["IoU"]}


def test_a_temperature_changes_calibration_and_is_compared_with_one() -> None:
    plain, scaled = score()["argmax"], score(temperature=2.5)["argmax"]
    assert torch.equal(plain["counts"], scaled["counts"])
    assert_scores(scaled["scores"], expected_scores(2.5))
    for name in ("ECE", "SCE", "SCE_argmax", "ACE", "MCE", "Brier", "NLL"):
        assert scaled["scores"][f"{name}_unscaled"] == pytest.approx(plain["scores"][name], abs=1e-12)
        assert f"{name}_unscaled" not in plain["scores"]
    assert abs(scaled["scores"]["NLL"] - plain["scores"]["NLL"]) > 0.1
    probable = score(temperature=2.5, decodings=["rankseg-iou"])["rankseg-iou"]
    assert_scores(probable["scores"], expected_scores(2.5, "rankseg-iou"))


def test_validation_images_and_the_loss() -> None:
    loss = CrossEntropyLoss()
    result = score(2, "val", loss=loss)["argmax"]
    assert (result["split"], len(result["counts"])) == ("val", 3)
    assert_scores(result["scores"], expected_scores(split="val"))
    data = blocks(2)
    batches = [(loss(Pointwise().predict(b["image"]), b["label"]), len(b["image"])) for b in data.val_dataloader()]
    mean = sum(value.item() * images for value, images in batches) / 3
    assert result["scores"]["loss"] == pytest.approx(mean, rel=1e-6)


def test_logits_are_those_of_the_settings() -> None:
    settings = InferenceSettings(window=(16, 20), overlap=0.5, scales=(0.5, 1.0), flip=True)
    found = score(1, settings=settings)["argmax"]["counts"]
    data = blocks(1)
    for batch in data.test_dataloader():
        height, width = batch["size"][0].tolist()  # as `predict` shows the image, without padding
        classes = predict_logits(Pointwise(), batch["image"][..., :height, :width], settings).argmax(1)
        expected = image_counts(classes, batch["label"][..., :height, :width], CLASSES)
        assert torch.equal(found[batch["index"]], expected)
        together = score(3, settings=settings)["argmax"]["counts"]
        assert torch.equal(together[batch["index"]], expected)
    assert not torch.equal(found, score(1)["argmax"]["counts"])


def fitted(batch_size: int = 2) -> Any:
    data = blocks(batch_size)
    fit = TemperatureFit(Pointwise(), data, "val", InferenceSettings())
    quiet().validate(fit, data, verbose=False)
    return fit.fitted


def test_the_temperature_is_that_of_the_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit_temperature(expected_images("val"), ignore_index=255)
    found = fitted()
    assert expected.at_bound is None
    assert expected.value > 1.2
    for name in ("value", "nll_before", "nll_after"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    kept: list[int] = []
    monkeypatch.setattr(scoring, "_KEPT_LOGITS", 3 * 4 * 16 * 48 // 4)
    monkeypatch.setattr(
        scoring, "fit_temperature", lambda batches: kept.append(batches[0][1].numel()) or fit_temperature(batches)
    )
    assert fitted(1).value == pytest.approx(expected.value, rel=0.2)
    assert 0.1 < kept[0] / sum(label.ne(255).sum().item() for _, label in expected_images("val")) < 0.5


def test_other_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blocks, "num_classes", 3)
    with pytest.raises(InputError, match=r"network has 4 classes, but the test data have 3"):
        score()


def test_an_output_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Pointwise, "predict", lambda self, image: image.new_full((len(image), 4, *image.shape[2:]), torch.nan)
    )
    with pytest.raises(InputError, match=r"test: .*NaN"):
        score()
