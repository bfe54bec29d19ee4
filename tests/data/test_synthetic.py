"""The drawn scenes: the stated distribution is the one that the annotators' masks come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from softjaccard.data import synthetic
from softjaccard.data.synthetic import SyntheticScenes


def test_items_have_the_stated_types_sizes_and_ranges() -> None:
    scenes = SyntheticScenes(length=3, size=(40, 56), raters=4)
    assert len(scenes) == len(list(scenes)) == 3
    for item in scenes:
        assert item["image"].dtype == torch.float32
        assert item["image"].shape == (3, 40, 56)
        assert item["image"].min() >= 0
        assert item["image"].max() <= 1
        assert item["votes"].dtype == torch.uint8
        assert item["votes"].shape == (4, 40, 56)
        assert item["label"].dtype == torch.int64
        assert item["label"].shape == (40, 56)
        assert item["soft_label"].dtype == torch.float32
        assert item["soft_label"].shape == (5, 40, 56)
        torch.testing.assert_close(item["soft_label"].sum(0), torch.ones(40, 56))
        assert item["soft_label"].min() >= 0


def squared_error_of_mean_vote(raters: int = 60) -> float:
    """Squared error of the mean vote in units of its variance p (1 - p) / R, averaged; its expectation is 1.

    Offsets are shared by all pixels of a shape, so the pixels of a scene are not independent: hence many scenes.
    """
    ratios = []
    for item in SyntheticScenes(length=60, size=32, raters=raters, void=False, seed=7):
        probability = item["soft_label"].double()
        votes = torch.stack([(item["votes"] == c).double().mean(0) for c in range(5)])
        variance = probability * (1 - probability) / raters
        uncertain = variance * raters > 0.05
        ratios.append(((votes - probability) ** 2 / variance)[uncertain])
    ratio = torch.cat(ratios)
    assert ratio.numel() > 5_000
    return float(ratio.mean())


def test_votes_are_samples_of_the_true_distribution() -> None:
    assert 0.85 < squared_error_of_mean_vote() < 1.15


@pytest.mark.parametrize("change", ["bias", "spread"])
def test_the_comparison_above_notices_a_small_mistake(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    annotate = synthetic._annotate
    extra = {"bias": lambda kind: kind.bias + 0.25 * kind.spread, "spread": lambda kind: 1.25 * kind.spread}[change]
    wrong = tuple(replace(kind, **{change: extra(kind)}) for kind in synthetic._KINDS)

    def annotate_wrongly(*arguments: Any) -> Any:
        with monkeypatch.context() as context:
            context.setattr(synthetic, "_KINDS", wrong)
            return annotate(*arguments)

    monkeypatch.setattr(synthetic, "_annotate", annotate_wrongly)
    assert squared_error_of_mean_vote() > 1.5


def test_upper_shapes_hide_lower_ones() -> None:
    # On the biased outline d = -bias a shape is there with probability 1/2: half leaf on half disc on ground.
    kinds, size = synthetic._KINDS, (1, 10)
    lower, upper = (
        synthetic._Shape(kind, np.full(size, -kinds[kind].bias * min(size)), np.zeros((3, *size))) for kind in (0, 1)
    )
    probability = synthetic._true_distribution([lower, upper], size)[:, 0, 0]
    np.testing.assert_allclose(probability, [0.25, 0.25, 0.5, 0, 0], atol=1e-15)


def test_label_is_the_most_probable_class_and_void_is_ignored() -> None:
    shares = []
    for item in SyntheticScenes(length=20, size=64):
        void = item["label"] == SyntheticScenes.ignore_index
        assert torch.equal(item["label"][~void], item["soft_label"].argmax(0)[~void])
        assert bool((item["votes"][:, void] == 255).all())
        assert bool((item["votes"][:, ~void] < 5).all())
        shares.append(void.double().mean())
    assert 0.001 < float(torch.stack(shares).mean()) < 0.02
    assert all(bool((item["label"] < 5).all()) for item in SyntheticScenes(length=5, size=64, void=False))


def test_scenes_depend_on_seed_and_index_alone() -> None:
    scenes, again = SyntheticScenes(length=4, size=32, raters=6, seed=3), SyntheticScenes(length=2, size=32, seed=3)
    for name in ("image", "label", "soft_label"):
        assert torch.equal(scenes[1][name], again[1][name])
        assert not torch.equal(scenes[1][name], scenes[2][name])
        assert not torch.equal(scenes[1][name], SyntheticScenes(length=2, size=32, seed=4)[1][name])
    assert torch.equal(scenes[1]["votes"][:5], again[1]["votes"])
    assert torch.equal(scenes[-1]["image"], scenes[3]["image"])


def test_all_classes_appear() -> None:
    labels = torch.stack([item["label"] for item in SyntheticScenes(length=30, size=48)])
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 255}


@pytest.mark.parametrize(
    ("options", "name"),
    [({"length": -1}, "length"), ({"size": (64, 4)}, "size"), ({"raters": 0}, "raters"), ({"seed": -1}, "seed")],
)
def test_bad_options_are_named(options: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SyntheticScenes(**options)


def test_index_out_of_range() -> None:
    with pytest.raises(IndexError):
        SyntheticScenes(length=2)[2]
