"""Decision rules against the optimum by enumeration."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from softjaccard.errors import InputError
from softjaccard.evaluation import decoding
from softjaccard.evaluation.decoding import decode

Array = NDArray[np.float64]
needs_rankseg = pytest.mark.skipif(find_spec("rankseg") is None, reason="needs the package rankseg")


def all_masks(pixels: int) -> NDArray[np.int64]:
    return np.arange(2**pixels)[:, None] >> np.arange(pixels) & 1


def expected_scores(foreground: Array, score: str) -> Array:
    """The expected mean score of both classes for every mask, over all labels of independent pixels; 0/0 is 0."""
    masks = all_masks(len(foreground))
    probability = np.prod(np.where(masks, foreground, 1 - foreground), 1)
    result = np.zeros(len(masks))
    for prediction, label in ((masks, masks), (1 - masks, 1 - masks)):
        overlap = prediction @ label.T
        sizes = prediction.sum(1)[:, None] + label.sum(1)
        whole = sizes - overlap if score == "iou" else sizes / 2
        result += np.divide(overlap, whole, out=np.zeros(whole.shape), where=whole > 0) @ probability / 2
    return result


def value_of(mask: NDArray[np.int64], scores: Array) -> float:
    return float(scores[(mask << np.arange(len(mask))).sum()])


@needs_rankseg
@pytest.mark.parametrize("score", ["iou", "dice"])
def test_rankseg_comes_close_to_the_best_expected_score(score: str) -> None:
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(25):
        # Mostly background, but both classes are probable somewhere: others would not be predicted.
        foreground = np.append(rng.beta(0.4, 1.0, 8), 0.9)
        scores = expected_scores(foreground, score)
        probabilities = torch.from_numpy(np.stack([1 - foreground, foreground])[None])
        chosen, likeliest = (
            decode(probabilities, method, from_logits=False)[0].numpy() for method in (f"rankseg-{score}", "argmax")
        )
        gaps.append([scores.max() - value_of(chosen, scores), scores.max() - value_of(likeliest, scores)])
    mean, worst = np.mean(gaps, 0), np.max(gaps, 0)
    assert mean[0] < 0.01
    assert worst[0] < 0.06
    assert mean[0] < mean[1]


@needs_rankseg
@pytest.mark.parametrize("score", ["iou", "dice"])
def test_rankseg_takes_logits_and_any_number_of_spatial_dimensions(score: str) -> None:
    logits = 3 * torch.randn(2, 4, 5, 6, 3, dtype=torch.float64)
    method = f"rankseg-{score}"
    classes = decode(logits, method)
    assert classes.dtype == torch.int64
    assert classes.shape == (2, 5, 6, 3)
    assert torch.equal(classes, decode(logits.softmax(1), method, from_logits=False))
    assert torch.equal(classes[1:], decode(logits[1:], method))
    sure = torch.nn.functional.one_hot(torch.randint(4, (2, 5, 6)), 4).movedim(-1, 1).float()
    assert torch.equal(decode(sure, method, from_logits=False), sure.argmax(1))


@needs_rankseg
def test_rankseg_grows_a_class_beyond_a_half_but_does_not_begin_one_below() -> None:
    foreground = torch.full((1, 1, 20, 20), 0.01)
    foreground[..., :3, :3] = 0.45
    for centre, size in ((0.45, 0), (0.95, 9)):
        foreground[..., 1, 1] = centre
        probabilities = torch.cat([1 - foreground, foreground], 1)
        assert decode(probabilities, "rankseg-dice", from_logits=False).sum() == size


def test_argmax() -> None:
    logits = torch.randn(2, 5, 3, 4)
    assert np.array_equal(decode(logits).numpy(), logits.numpy().argmax(1))


def test_what_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'best' is unknown.*argmax, rankseg-iou, rankseg-dice"):
        decode(torch.rand(1, 2, 3), "best")
    for shape in ((2, 3), (1, 1, 3)):
        with pytest.raises(InputError, match="at least two classes"):
            decode(torch.rand(shape))
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"rankseg-iou.*pip install \"softjaccard\[rankseg\]\""):
        decode(torch.rand(1, 2, 3), "rankseg-iou")
