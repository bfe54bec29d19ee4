"""Scores against soft labels: a transcription in NumPy, the losses, hard labels, ids, ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ranks
import score_ranks
import softjaccard as sj
from softjaccard.metrics import FineGrainedIoU, SoftScores, soft_scores
from softjaccard.metrics.iou import Classes
from softjaccard.statistics import region_statistics

Array = np.ndarray
CLASSES = 5


def transcription(images: list[tuple[Array, Array]], rule: Any) -> dict[str, Any]:
    """The definitions, of probabilities and labels (n, C) of the pixels of each image that count."""

    def score_of(family: str, pixels: tuple[Array, Array], c: int) -> float:
        p, y = pixels[0][:, c], pixels[1][:, c]
        shared = np.minimum(p, y).sum()
        if family == "Dice":
            return float(2 * shared / (p.sum() + y.sum())) if (p + y).sum() else 1.0
        return float(shared / np.maximum(p, y).sum()) if (p + y).sum() else 1.0

    def active(pixels: tuple[Array, Array], rule: Any) -> list[int]:
        if not len(pixels[0]):
            return []
        label, predicted = (pixels[1].max(0) > 0.01), (pixels[0].max(0) > 0.5)
        rules = {"present": label, "predicted": predicted, "either": label | predicted, "all": label | True}
        return [c for c in range(CLASSES) if (rules[rule][c] if isinstance(rule, str) else c in rule)]

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else 0.0

    joined = (np.concatenate([p for p, _ in images]), np.concatenate([y for _, y in images]))
    in_all, in_one = ("either", "present") if rule is None else (rule, rule)
    result: dict[str, Any] = {"active_D": [c in active(joined, in_all) for c in range(CLASSES)]}
    for family in ("IoU", "Dice"):
        result[f"Soft{family}_D"] = [score_of(family, joined, c) for c in range(CLASSES)]
        result[f"mSoft{family}_D"] = mean([score_of(family, joined, c) for c in active(joined, in_all)])
        table = [{c: score_of(family, image, c) for c in active(image, in_one)} for image in images]
        result[f"mSoft{family}_I"] = mean([mean(list(row.values())) for row in table if row])
        columns = [[row[c] for row in table if c in row] for c in range(CLASSES)]
        result[f"mSoft{family}_C"] = mean([mean(column) for column in columns if column])
    p, y = joined
    result["TV"] = mean(list(np.abs(p - y).sum(1) / 2))
    logs = np.log(np.where(y > 0, y, 1)) - np.log(np.where(y > 0, np.maximum(p, 1e-12), 1))
    result["KL"] = mean(list((y * logs).sum(1)))
    return result


def random_logits(spatial: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(6, CLASSES, *spatial, generator=generator, dtype=dtype)
    logits[:, 3] -= 1.5
    logits[1, 0] += 9
    return logits


def random_label(kind: str, spatial: tuple[int, ...]) -> tuple[Any, Tensor, Tensor]:
    """A label, and (in other words) its distribution (6, C, *spatial) and the pixels that have one.

    Class 4 is in no label of votes or ids; image 2 has one class only, and image 3 none.
    """
    generator = torch.Generator().manual_seed(4)
    logits = random_logits(spatial)
    if kind in ("distribution", "teacher"):
        own = torch.randn(logits.shape, generator=generator, dtype=torch.float64) + logits / 2
        distribution = own.softmax(1)
        label = distribution if kind == "distribution" else sj.TeacherLabel(own)
        return label, distribution, torch.ones(6, *spatial, dtype=torch.bool)
    noisy = torch.randn(4, *logits.shape, generator=generator, dtype=torch.float64) + logits / 3
    votes = noisy[:, :, :4].argmax(2).transpose(0, 1)
    votes[torch.rand(votes.shape, generator=generator) < 0.4] = 255
    votes[2] = torch.where(votes[2] == 255, 255, 1)
    votes[3] = 255
    one_hot = torch.stack([(votes == c).double() for c in range(CLASSES)], 2)
    if kind == "votes":
        count = one_hot.sum((1, 2))
        return sj.RaterLabel(votes), one_hot.sum(1) / count.clamp(min=1).unsqueeze(1), count > 0
    ids, distribution = votes[:, 0], one_hot[:, 0]
    if kind == "smoothed":
        return sj.SmoothedLabel(ids, 0.2), 0.8 * distribution + 0.2 / CLASSES, ids != 255
    return ids, distribution, ids != 255


KINDS = ("hard", "smoothed", "distribution", "teacher", "votes")


@pytest.mark.parametrize("spatial", [(23,), (11, 7), (3, 5, 4)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("rule", [None, "present", "predicted", "either", "all", (0, 3)])
def test_every_score_equals_the_transcription(
    spatial: tuple[int, ...], kind: str, from_logits: bool, rule: Classes
) -> None:
    logits = random_logits(spatial)
    label, distribution, kept = random_label(kind, spatial)
    mask = torch.rand(kept.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    mask[3] = False
    kept = kept & mask
    probabilities = logits.softmax(1)
    values = logits.clone() if from_logits else probabilities.clone()
    values.movedim(1, -1)[~kept] = torch.nan  # nobody looks at these
    metric = SoftScores(CLASSES, ignore_index=255, classes=rule, from_logits=from_logits)
    for batch in ([0], [1, 2, 3, 4], [5]):
        part = label[batch] if isinstance(label, Tensor) else label.map(lambda tensor, some=batch: tensor[some])
        metric.update(values[batch], part, mask[batch])
    images = [
        (p.movedim(0, -1)[k].numpy(), y.movedim(0, -1)[k].numpy())
        for p, y, k in zip(probabilities, distribution, kept, strict=True)
    ]
    expected = transcription(images, rule)
    scores = {name: score.tolist() for name, score in metric.compute().items()}
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-12), name
    if rule is None and kind in ("hard", "votes"):
        assert expected["active_D"] == [True] * 5  # the last is predicted
        assert scores["mSoftIoU_D"] != pytest.approx(scores["mSoftIoU_I"], abs=1e-3)
        assert scores["mSoftIoU_I"] != pytest.approx(scores["mSoftIoU_C"], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per", ["dataset", "image", "class"])
@pytest.mark.parametrize("rule", ["present", "predicted", "either", "all", (0, 3)])
def test_one_minus_the_score_is_the_loss(kind: str, per: Any, rule: Any) -> None:
    logits, (label, _, _) = random_logits((9, 8)), random_label(kind, (9, 8))
    metric = SoftScores(CLASSES, ignore_index=255, classes=rule, from_logits=True)
    metric.update(logits, label)
    scores = metric.compute()
    for family, loss in (("IoU", sj.JaccardLoss), ("Dice", sj.DiceLoss)):
        value = loss(per=per, classes=rule, smooth=0.0, ignore_index=255)(logits, label)
        score = scores[f"mSoft{family}_{per[0].upper()}"]
        assert value.item() == pytest.approx(1 - score.item(), abs=1e-12)
        assert 0.01 < value.item() < 0.99


def test_hard_labels_and_predictions_give_the_counted_scores() -> None:
    ids, label = score_ranks.images()
    hard = torch.nn.functional.one_hot(ids, 4).movedim(-1, 1).float()
    metric, counted = SoftScores(4), FineGrainedIoU(4)
    metric.update(hard, label)
    counted.update(ids, label)
    scores, expected = metric.compute(), counted.compute()
    for family in ("IoU", "Dice"):
        for per in ("D", "I", "C"):
            torch.testing.assert_close(scores[f"mSoft{family}_{per}"], expected[f"m{family}_{per}"])
    assert scores["TV"].item() == pytest.approx(1 - expected["Acc"].item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_itself_is_right(kind: str) -> None:
    label, distribution, kept = random_label(kind, (9, 8))
    spread = torch.full_like(distribution, 1 / CLASSES)
    metric = SoftScores(CLASSES, ignore_index=255)
    metric.update(torch.where(kept.unsqueeze(1), distribution, spread), label)
    scores = metric.compute()
    for family in ("IoU", "Dice"):
        for per in ("D", "I", "C"):
            assert scores[f"mSoft{family}_{per}"].item() == pytest.approx(1, abs=1e-12)
    assert scores["TV"].item() == pytest.approx(0, abs=1e-12)
    assert scores["KL"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["hard", "votes", "distribution"])
def test_logits_of_any_type(dtype: torch.dtype, kind: str) -> None:
    logits = random_logits((9, 9)).to(dtype)
    label, _, _ = random_label(kind, (9, 9))
    metric, reference = (SoftScores(CLASSES, ignore_index=255, from_logits=True) for _ in range(2))
    metric.update(logits, label)
    reference.update(logits.double(), label)
    torch.testing.assert_close(metric.compute(), reference.compute(), rtol=0, atol=2e-6)
    rounded = reference.compute()
    torch.testing.assert_close(reference.half().compute(), rounded, rtol=0, atol=0)


def test_the_function_gives_the_same() -> None:
    logits, (label, _, _) = random_logits((9, 8)), random_label("votes", (9, 8))
    metric = SoftScores(CLASSES, ignore_index=255, from_logits=True)
    metric.update(logits, label)
    torch.testing.assert_close(soft_scores(region_statistics(logits, label, ignore_index=255)), metric.compute())


def test_images_come_by_id_and_of_those_with_the_same_id_the_first_counts() -> None:
    logits, (label, _, _) = random_logits((9, 8)), random_label("votes", (9, 8))
    metric, alone = (SoftScores(CLASSES, ignore_index=255, from_logits=True) for _ in range(2))
    for batch, ids in (([5, 0], [2**40, 3]), ([1, 0, 4], [7, 2**40, 3])):
        metric.update(logits[batch], label.map(lambda tensor, some=batch: tensor[some]), image_ids=ids)
    alone.update(logits[[0, 1, 5]], label.map(lambda tensor: tensor[[0, 1, 5]]), image_ids=[3, 7, 2**40])
    statistics, ids = metric.statistics()
    assert ids.tolist() == [3, 7, 2**40]
    assert statistics["pixels"].tolist() == alone.statistics()[0]["pixels"].tolist()
    torch.testing.assert_close(metric.compute(), alone.compute(), rtol=0, atol=1e-12)
    assert metric.rows[0].shape == (2, 1 + 7 * CLASSES + 1)


def test_without_images_scores_are_zero() -> None:
    metric, empty = SoftScores(3), SoftScores(3)
    metric.update(torch.full((1, 3, 4), 1 / 3), torch.full((1, 4), -100))
    with pytest.warns(UserWarning, match="before the ``update``"):
        empty.compute()
    for scores in (metric.compute(), empty.compute()):
        assert all(not score.any() for name, score in scores.items() if score.ndim == 0), scores
        assert not scores["active_D"].any()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    return ranks.run(score_ranks.soft_by_rank, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", range(len(score_ranks.SHARES)))
def test_two_processes_give_exactly_the_result_of_one(by_rank: list[list[Any]], case: int) -> None:
    _, with_ids = score_ranks.SHARES[case]
    single = score_ranks.soft_scores_of((tuple(range(7)),), with_ids)
    for results in by_rank:
        scores, ids = results[case]
        assert torch.equal(ids, single[1])
        for name, score in single[0].items():
            assert torch.equal(scores[name], score), name


@pytest.mark.parametrize(
    ("probabilities", "label", "error", "words"),
    [
        (
            torch.zeros(1, 2, 4, dtype=torch.int64),
            torch.zeros(1, 4).long(),
            TypeError,
            "probabilities: expected floats",
        ),
        (torch.ones(1, 3, 4), torch.zeros(1, 4).long(), ValueError, r"probabilities: expected \(B, 2, \*spatial\)"),
        (torch.ones(1, 2), torch.zeros(1).long(), ValueError, "at least one pixel"),
        (torch.ones(1, 2, 0), torch.zeros(1, 0).long(), ValueError, "at least one pixel"),
        (torch.ones(1, 2, 4), torch.zeros(1, 4).long(), ValueError, "sum to 1 .*from_logits=True"),
        (torch.full((1, 2, 4), torch.nan), torch.zeros(1, 4).long(), ValueError, "found NaN"),
        (torch.full((1, 2, 4), 0.5), torch.full((1, 4), 2), ValueError, "label: .*found 2 at 4 pixels"),
        (torch.full((1, 2, 4), 0.5), sj.RaterLabel(torch.full((1, 3, 4), 5)), ValueError, "label.votes: .*found 5"),
        (torch.full((1, 2, 4), 0.5), torch.zeros(1, 5).long(), ValueError, "label: .*shape"),
        (torch.full((1, 2, 4), 0.5), "cat", TypeError, "label: expected"),
    ],
)
def test_bad_input_is_named(probabilities: Tensor, label: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SoftScores(2).update(probabilities, label)


def test_bad_options_masks_and_logits_are_named() -> None:
    metric, half, label = SoftScores(2, from_logits=True), torch.zeros(1, 2, 4), torch.zeros(1, 4).long()
    with pytest.raises(ValueError, match="NaN; the network may have diverged"):
        metric.update(half + torch.nan, label)
    for each in (metric, SoftScores(2)):
        with pytest.raises(TypeError, match="mask: expected booleans"):
            each.update(half + 0.5, label, torch.ones(1, 4))
        with pytest.raises(ValueError, match="mask: expected shape"):
            each.update(half + 0.5, label, torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="classes: expected one of"):
        SoftScores(2, classes="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes: expected ids below"):
        SoftScores(2, classes=[2])
    with pytest.raises(ValueError, match="num_classes"):
        SoftScores(1)
