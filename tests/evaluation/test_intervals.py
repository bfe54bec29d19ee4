"""Intervals of scores of sums against a plain loop over the same draws; those of IoU are tested with the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from made_up_results import made_up, random_images, random_votes, rated
from softjaccard.evaluation.report import intervals as module
from softjaccard.evaluation.report.intervals import drawn_scores, score_differences, score_intervals, sum_scores
from softjaccard.metrics import bootstrap_interval, paired_bootstrap

Array = np.ndarray
RESAMPLES = 150
OF_PIXELS = ("ECE", "MCE", "SCE", "Brier", "NLL")
SOFT = [f"mSoft{family}_{letter}" for family in ("IoU", "Dice") for letter in "DIC"]


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", RESAMPLES)
    monkeypatch.setattr(module, "_CHUNK", 20_000)  # several draws at once, and several times


def pixels_of(seed: int, skill: float) -> list[dict[str, Array]]:
    """Probabilities, one-hot labels and shares of votes (n, 4) of the pixels of each of six images."""
    _, labels, logits = random_images(6, seed, skill)
    images = []
    for values, label, votes in zip(logits.numpy(), labels.numpy(), random_votes(6).numpy(), strict=True):
        odds = np.exp(values.astype(np.float64)).reshape(4, -1).T
        given = (votes.reshape(3, -1, 1) == np.arange(4)).sum(0)
        images.append({
            "p": odds / odds.sum(1, keepdims=True),
            "label": np.eye(4)[label.clip(0).ravel()] * (label >= 0).reshape(-1, 1),
            "votes": given / given.sum(1, keepdims=True).clip(1),
        })  # fmt: skip
    return images


def facts(p: Array, y: Array) -> dict[str, Array]:
    """What is known of an image: sums over its pixels that have a label, and the largest values."""
    p, y = p[y.sum(1) > 0], y[y.sum(1) > 0]
    rows, top = np.arange(len(p)), p.argmax(1)
    places, confidences = np.column_stack((p[rows, top], p)), np.column_stack((y[rows, top], y))
    count, gaps = np.zeros(10), np.zeros((5, 10))
    np.add.at(count, (10 * p.max(1)).astype(int), 1)
    for c in range(5):
        np.add.at(gaps[c], (10 * places[:, c]).astype(int), places[:, c] - confidences[:, c])
    logs = np.log(np.where(y > 0, y, 1))
    return {
        "n": np.array(len(p)), "count": count, "gaps": gaps, "squares": ((p - y) ** 2).sum(),
        "nll": -(y * np.log(p)).sum(), "entropy": -(y * logs).sum(), "distance": np.abs(p - y).sum() / 2,
        "both": np.minimum(p, y).sum(0), "either": np.maximum(p, y).sum(0), "p": p.max(0), "y": y.max(0),
    }  # fmt: skip


def scores_of(images: Sequence[dict[str, Array]], soft: bool) -> dict[str, float]:
    """The scores of these images, some of which may be the same."""
    total = {name: sum(image[name] for image in images) for name in images[0]}
    n, gaps = total["n"], np.abs(total["gaps"])
    scores = {
        "ECE": gaps[0].sum() / n,
        "MCE": max(gap / count for gap, count in zip(gaps[0], total["count"], strict=True) if count),
        "SCE": gaps[1:].sum() / 4 / n,
        "Brier": total["squares"] / n,
        "NLL": total["nll"] / n,
    }
    if not soft:
        return scores
    scores |= {"TV": total["distance"] / n, "KL": (total["nll"] - total["entropy"]) / n}
    values: dict[str, Callable[[dict[str, Array]], Array]] = {
        "IoU": lambda of: of["both"] / of["either"],
        "Dice": lambda of: 2 * of["both"] / (of["both"] + of["either"]),
    }
    active = [any(each["y"][c] > 0.01 or each["p"][c] > 0.5 for each in images) for c in range(4)]
    for family, value in values.items():
        scores[f"mSoft{family}_D"] = value(total)[active].mean()
        table = np.array([np.where(each["y"] > 0.01, value(each), np.nan) for each in images])
        scores[f"mSoft{family}_I"] = np.nanmean(table, 1).mean()
        seen = ~np.isnan(table).all(0)
        scores[f"mSoft{family}_C"] = np.nanmean(table[:, seen], 0).mean()
    return scores


def drawn_by_hand(seed: int = 0, skill: float = 2.0) -> dict[str, Array]:
    """Scores of each draw, one after the other."""
    draws = torch.randint(6, (RESAMPLES, 6), generator=torch.Generator().manual_seed(0)).tolist()
    found = {}
    for source, ending in (("label", ""), ("votes", "_votes")):
        images = [facts(image["p"], image[source]) for image in pixels_of(seed, skill)]
        drawn = [scores_of([images[row] for row in draw], soft=source == "votes") for draw in draws]
        found |= {f"{name}{ending}": np.array([scores[name] for scores in drawn]) for name in drawn[0]}
    return found


def close(values: object) -> object:
    return pytest.approx(values, rel=1e-5, abs=1e-8)


def test_the_scores_of_all_images_are_the_stored_ones() -> None:
    result = rated()
    found = {name: score.item() for name, score in sum_scores(result.image_sums).items()}
    of_votes = [f"{name}_votes" for name in (*OF_PIXELS, *SOFT, "TV", "KL")]
    assert found.keys() == {*OF_PIXELS, *of_votes}
    for name in ("ECE", "NLL", *of_votes):
        assert found[name] == pytest.approx(result.scores[name], rel=1e-12), name


def test_each_draw_has_the_scores_of_its_images() -> None:
    result, expected = rated(), drawn_by_hand()
    found = drawn_scores(result.image_sums)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-5, atol=1e-7, err_msg=name)
    # The last class is active in one image only, so that it comes and goes.
    assert np.diff(np.sort(expected["mSoftDice_D_votes"])).max() > 0.05


def test_intervals() -> None:
    result = rated()
    found, expected = score_intervals(result, ["mIoU_I"]), drawn_by_hand()
    assert found.keys() == {"mIoU_I"} | (expected.keys() & result.scores.keys())
    assert {"NLL", "TV_votes", "mSoftDice_D_votes", "SCE_votes"} <= found.keys()
    iou = bootstrap_interval(result.counts, "mIoU_I", resamples=RESAMPLES)
    assert found.pop("mIoU_I") == (iou.score, iou.low, iou.high)
    for name, interval in found.items():
        assert interval == close((result.scores[name], *np.percentile(expected[name], (2.5, 97.5)))), name


def test_differences() -> None:
    first, second = rated(), rated(seed=1, skill=3.0)
    found = score_differences(first, second, ["mIoU_I"])
    iou = paired_bootstrap(second.counts, first.counts, "mIoU_I", resamples=RESAMPLES)
    assert found.pop("mIoU_I") == (iou.difference, iou.low, iou.high)
    drawn, others = drawn_by_hand(1, 3.0), drawn_by_hand()
    assert len(found) == 15
    for name, interval in found.items():
        ends = np.percentile(drawn[name] - others[name], (2.5, 97.5))
        assert interval == close((second.scores[name] - first.scores[name], *ends)), name


def test_a_result_of_an_earlier_version_has_the_intervals_of_its_calibration() -> None:
    old, new = made_up(sums={}), made_up(seed=1)
    assert score_intervals(old, []).keys() == {"ECE"}
    assert score_intervals(new, []).keys() == {"ECE", "NLL"}
    assert score_differences(old, new, []).keys() == score_differences(new, old, []).keys() == {"ECE"}
