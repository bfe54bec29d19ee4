"""Fine-grained scores against a transcription of their definitions, torchmetrics, and the losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import DiceScore

import score_oracle
import softjaccard as sj
from softjaccard.metrics import FineGrainedIoU, fine_grained_iou, image_counts, score_names, table_score

NAMES = ("mIoU_D", "mIoU_I", "mIoU_C")


def random_batch(images: int, num_classes: int, spatial: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, C, *spatial) and labels of which some are 255; odd images lack the upper half of the classes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (images, *spatial), generator=generator)
    label[1::2] %= max(1, num_classes // 2)
    logits = torch.randn(images, num_classes, *spatial, generator=generator)
    logits.scatter_add_(1, label.unsqueeze(1), torch.full_like(logits, 1.5))
    label[torch.rand(label.shape, generator=generator) < 0.2] = 255
    return logits, label


def assert_equal(scores: dict[str, Tensor], expected: dict[str, Any]) -> None:
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name].tolist() == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("num_classes", [2, 5, 19, 190])
@pytest.mark.parametrize("spatial", [(40,), (7, 9), (3, 5, 4)])
def test_equals_the_transcription(num_classes: int, spatial: tuple[int, ...]) -> None:
    metric = FineGrainedIoU(num_classes, ignore_index=255)
    logits, label = random_batch(9, num_classes, spatial)
    label[3] = 255  # nothing counts
    label[4] = 1  # one class
    label[label == 0] = 1  # class 0 is only predicted
    if num_classes > 2:
        label[label == 2] = 1
        logits[:, 2] = -9.0  # class 2 is absent from the whole set
    mask = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    for batch in ([0, 1, 2], [3], [4, 5, 6, 7, 8]):
        metric.update(logits[batch], label[batch], mask[batch])
    kept = mask & (label != 255)
    table = score_oracle.pixel_sets(logits.argmax(1).numpy(), label.numpy(), kept.numpy(), num_classes)
    counts, ids = metric.table()
    assert counts.tolist() == [[list(cell) for cell in image] for image in table]
    assert counts.dtype == ids.dtype == torch.int64
    scores = metric.compute()
    assert_equal(scores, score_oracle.scores(table))
    if num_classes > 2:
        assert not scores["active_D"][2]
        assert not scores["active_C"][2]
    assert not scores["active_C"][0]


def random_table(images: int, num_classes: int, seed: int) -> Tensor:
    """Counts of which some images lack some classes, in the label, in the prediction, or both; one has no pixels."""
    generator = torch.Generator().manual_seed(seed)
    confusion = torch.randint(0, 50, (images, num_classes, num_classes), generator=generator)
    confusion += 90 * torch.eye(num_classes, dtype=torch.int64)
    for axes in ((images, num_classes, 1), (images, 1, num_classes)):
        confusion = confusion * (torch.rand(axes, generator=generator) < 0.7)
    confusion[images // 2] = 0
    hits = confusion.diagonal(dim1=1, dim2=2)
    return torch.stack((hits, confusion.sum(1) - hits, confusion.sum(2) - hits), -1)


def as_lists(counts: Tensor) -> list[list[tuple[int, int, int]]]:
    return [[tuple(cell) for cell in image] for image in counts.tolist()]


@pytest.mark.parametrize("images", [1, 2, 21, 137])
@pytest.mark.parametrize("rule", [None, "present", "predicted", "either", "all", (0, 3)])
def test_every_rule_and_quantile_equals_the_transcription(images: int, rule: Any) -> None:
    counts, quantiles = random_table(images, 4, images), (1, 2.5, 5, 50, 100)
    scores = fine_grained_iou(counts, classes=rule, quantiles=quantiles)
    assert_equal(scores, score_oracle.scores(as_lists(counts), rule, quantiles=quantiles))
    assert scores["mIoU_I_worst100"].item() == pytest.approx(scores["mIoU_I"].item(), abs=1e-12)
    if images == 137 and rule is None:
        assert scores["mIoU_I_worst2.5"] < scores["mIoU_I_worst5"] < scores["mIoU_I_worst50"]
    for name in score_names(quantiles):
        assert table_score(counts, name, classes=rule) == scores[name]


@pytest.mark.parametrize("images", [1, 40])
def test_binary_equals_the_transcription(images: int) -> None:
    counts = random_table(images + 1, 2, images)
    assert_equal(fine_grained_iou(counts, binary=True), score_oracle.scores(as_lists(counts), binary=True))


def test_binary_by_hand() -> None:
    label = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [-100] * 4])
    predictions = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]])
    metric = FineGrainedIoU(2, binary=True)
    metric.update(predictions, label)
    scores = metric.compute()
    assert scores["mIoU_D"].item() == pytest.approx(5 / 7)
    assert scores["mIoU_I"].item() == pytest.approx((1 + 1 / 2 + 0 + 1) / 4)  # nothing to find in the first: 1
    assert scores["mIoU_C"].item() == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert scores["mAcc_I"].item() == pytest.approx((1 / 2 + 1) / 2)
    assert scores["Acc"].item() == 14 / 16
    assert scores["active_D"].tolist() == [False, True]


def test_worst_images_by_hand() -> None:
    hits = torch.arange(1, 41)
    counts = torch.stack((torch.stack((hits, 0 * hits, 100 - hits), -1), torch.zeros(40, 3, dtype=torch.int64)), 1)
    scores = fine_grained_iou(counts.flip(0), quantiles=(1, 5, 10))
    assert scores["mIoU_I_worst1"].item() == pytest.approx(0.01)
    assert scores["mIoU_I_worst5"].item() == pytest.approx(0.015)
    assert scores["mIoU_C_worst10"].item() == pytest.approx(0.025)
    assert scores["mIoU_I_worst_mean"].item() == pytest.approx(sum(4 * k + 1 for k in range(1, 11)) / 2000)


def test_equals_torchmetrics_over_the_data_set() -> None:
    logits, label = random_batch(6, 5, (11, 13))
    logits[:, 4] = -9.0
    label[label == 4] = 255  # a class that is nowhere: both leave it out
    theirs = MulticlassJaccardIndex(5, average="macro", ignore_index=255)
    by_class = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    scores = fine_grained_iou(image_counts(logits, label, 5, ignore_index=255))
    assert scores["mIoU_D"].item() == pytest.approx(theirs(logits, label).item(), abs=1e-6)
    torch.testing.assert_close(scores["IoU_D"][:4].float(), by_class(logits, label)[:4])
    assert scores["active_D"].tolist() == [True] * 4 + [False]
    assert scores["IoU_D"][4] == 0

    kept = (label != 255).unsqueeze(1)
    one_hot = [torch.nn.functional.one_hot(ids, 5).movedim(-1, 1) * kept for ids in (logits.argmax(1), label % 255)]
    for average, name in (("macro", "mDice_D"), ("none", "Dice_D")):
        dice = DiceScore(5, average=average, aggregation_level="global")
        theirs_dice = dice(*one_hot).nan_to_num(0.0).flatten()
        torch.testing.assert_close(scores[name].float().flatten(), theirs_dice)


#: A handful of images with a few pixels: predicted ids and labels, of which -1 is ignored.
MAPS = st.integers(2, 4).flatmap(
    lambda c: st.tuples(
        st.just(c),
        st.integers(1, 4).flatmap(
            lambda b: st.lists(st.tuples(st.integers(0, c - 1), st.integers(-1, c - 1)), min_size=b * 5, max_size=b * 5)
        ),
    )
)


@pytest.mark.parametrize(("loss", "name"), [(sj.JaccardLoss, "IoU"), (sj.DiceLoss, "Dice")])
@given(drawn=MAPS, rule=st.sampled_from(["present", "predicted", "either", "all", [1], [1, 0]]))
def test_the_loss_of_one_hot_probabilities_is_one_minus_the_score(loss: Any, name: str, drawn: Any, rule: Any) -> None:
    num_classes, pairs = drawn
    ids, label = torch.tensor(pairs).view(-1, 5, 2).unbind(-1)
    probabilities = torch.nn.functional.one_hot(ids, num_classes).movedim(-1, 1).double()
    counts = image_counts(probabilities, label, num_classes, ignore_index=-1)
    for per, letter in (("dataset", "D"), ("image", "I"), ("class", "C")):
        options = {"per": per, "classes": rule, "smooth": 0.0, "activation": None, "ignore_index": -1}
        value = loss(**options)(probabilities, label).item()
        score = table_score(counts, f"m{name}_{letter}", classes=rule).item()
        if bool((label != -1).any()):
            assert value == pytest.approx(1 - score, abs=1e-12), per
        else:
            assert value == score == 0  # nothing counts


def test_a_class_that_is_only_predicted_counts_in_d_alone() -> None:
    scores = fine_grained_iou(image_counts(torch.tensor([[0, 0, 0, 1]]), torch.zeros(1, 4, dtype=torch.long), 3))
    assert [scores[name].item() for name in NAMES] == [0.375, 0.75, 0.75]
    assert scores["mAcc_D"].item() == 0.75  # of a class without a label no share can be found
    assert [scores[f"active_{per}"].tolist() for per in "DC"] == [[True, True, False], [True, False, False]]


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("binary", [False, True])
def test_nothing_to_count_gives_zero(images: int, binary: bool) -> None:
    metric = FineGrainedIoU(2, binary=binary)
    if images:
        metric.update(torch.zeros(images, 2, 3, 3), torch.full((images, 3, 3), -100))
    assert all(not value.any() for value in metric.compute().values())


def test_ignored_pixels_may_hold_anything() -> None:
    logits, label = random_batch(3, 5, (6, 6))
    ignored = label == 255
    expected = image_counts(logits, label, 5, ignore_index=255)
    changed = torch.where(ignored.unsqueeze(1), math.nan, logits)
    assert torch.equal(image_counts(changed, label, 5, ignore_index=255), expected)
    for anything in (70_000, -1, 2**40):
        ids = torch.where(ignored, anything, logits.argmax(1))
        assert torch.equal(image_counts(ids, label, 5, ignore_index=255), expected)
        masked = torch.where(ignored, anything, label)
        assert torch.equal(image_counts(ids, masked, 5, mask=~ignored), expected)
    for ignore_index in (-100, -1, 5, 6, 2**40, -(2**40)):
        moved = torch.where(ignored, ignore_index, label)
        assert torch.equal(image_counts(logits, moved, 5, ignore_index=ignore_index), expected)


def test_an_ignored_class_does_not_count() -> None:
    ids, label = torch.tensor([[0, 1, 2, 2, 1]]), torch.tensor([[0, 1, 1, 2, 0]])
    expected = image_counts(ids, label, 3, mask=label != 1)
    assert torch.equal(image_counts(ids, label, 3, ignore_index=1), expected)
    assert expected[0, 1].tolist() == [0, 1, 0]


def test_large_images_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, label = random_batch(3, 5, (7, 9))
    label[0, 0] = 0  # a part without ignored pixels, and at least one with
    whole = image_counts(logits, label, 5, ignore_index=255)
    negative = torch.where(label == 255, -100, label)
    monkeypatch.setattr("softjaccard.metrics.counts._CHUNK", 8)
    assert torch.equal(image_counts(logits, label, 5, ignore_index=255), whole)
    assert torch.equal(image_counts(logits, negative, 5), whole)


def test_class_156_in_bytes_is_not_ignored() -> None:
    label = torch.full((1, 4), 156, dtype=torch.uint8)
    assert image_counts(label, label, 157)[0, 156].tolist() == [4, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_any_integer_type(dtype: torch.dtype) -> None:
    ids, label = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 0]])
    mask = torch.tensor([[True, True, True, False]])
    for options in ({}, {"mask": mask}):
        expected = image_counts(ids, label, 2, **options)
        assert torch.equal(image_counts(ids.to(dtype), label.to(dtype), 2, **options), expected)


@pytest.mark.parametrize(
    ("predictions", "label", "error", "words"),
    [
        (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), TypeError, r"label: expected integer.*argmax"),
        (torch.zeros(1, 2, 4), torch.zeros(1, 4).long(), ValueError, r"predictions: .*\(1, 3, 4\).*\(1, 2, 4\)"),
        (torch.zeros(1, 5).long(), torch.zeros(1, 4).long(), ValueError, r"predictions: .*\(1, 4\).*\(1, 5\)"),
        (torch.zeros(1, 3, 4), torch.tensor([[0, 1, 255, 2]]), ValueError, r"label: .*0 to 2.*ignore_index=255"),
        (torch.zeros(1, 3, 4), torch.tensor([[0, 1, -1, 2]]), ValueError, r"label: .*0 to 2.*ignore_index=-1"),
        (torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2**32, 2]]), ValueError, r"label: .*ignore_index=4294967296"),
        (torch.tensor([[0, 3]]), torch.tensor([[0, 1]]), ValueError, r"predictions: .*0 to 2, found \[3\]"),
        (torch.tensor([[0, -1]]), torch.tensor([[0, 1]]), ValueError, r"predictions: .*found \[-1\]"),
        (torch.tensor([[0, 2**16]]), torch.tensor([[0, 1]]), ValueError, r"predictions: .*found \[65536\]"),
        (torch.tensor([[0, 3]]), torch.tensor([[-100, 1]]), ValueError, r"predictions: .*0 to 2, found \[3\]"),
        (torch.full((1, 3, 2), math.nan), torch.tensor([[-100, 1]]), ValueError, r"predictions: .*NaN"),
    ],
)
def test_bad_input_is_named(predictions: Tensor, label: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FineGrainedIoU(3).update(predictions, label)


def test_bad_masks_and_options_are_named() -> None:
    logits, label = torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(TypeError, match="mask: expected booleans"):
        image_counts(logits, label, 3, mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="mask: expected shape"):
        image_counts(logits, label, 3, mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_classes: expected at least 2"):
        FineGrainedIoU(1)
    for options, words in (
        ({"classes": "auto"}, "classes: expected one of 'present'.*got 'auto'"),
        ({"classes": []}, "classes: .*a list of class ids"),
        ({"classes": [-1]}, "classes: .*a list of class ids"),
        ({"classes": [3]}, "classes: expected ids below the number of classes 3"),
        ({"quantiles": [0]}, "quantiles: .*percentages"),
        ({"quantiles": [101]}, "quantiles: .*percentages"),
        ({"binary": True}, "binary: .*2 classes, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            FineGrainedIoU(3, **options)
    with pytest.raises(ValueError, match="classes: expected None where binary"):
        FineGrainedIoU(2, binary=True, classes="all")


@pytest.mark.parametrize("name", ["IoU", "mIoU", "mIoU_E", "mIoU_D_worst5", "mIoU_I_worst", "mIoU_I_worst0", "miou_D"])
def test_unknown_scores_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"score: expected|quantiles: expected"):
        table_score(random_table(3, 2, 0), name)


def test_bad_tables_are_named() -> None:
    with pytest.raises(TypeError, match="counts: expected integers"):
        fine_grained_iou(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match=r"counts: .*\(N, C, 3\).*\(2, 3, 4\)"):
        fine_grained_iou(torch.zeros(2, 3, 4).long())
    with pytest.raises(ValueError, match="classes: expected ids below the number of classes 3"):
        table_score(torch.zeros(2, 3, 3).long(), "mIoU_D", classes=[0, 3])
