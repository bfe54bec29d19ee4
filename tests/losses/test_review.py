"""Faults that a review found, each once."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import softjaccard as sj


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_probabilities_of_a_single_class_are_binary(backend: str) -> None:
    p = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randint(2, (2, 5, 6))
    expected = F.binary_cross_entropy(p[:, 0], y.double())
    loss = sj.cross_entropy(p, y, activation=None, backend=backend)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(value, p)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients)
    assert sj.kl_divergence(p, p.detach(), activation=None, backend=backend).abs() < 1e-12


@pytest.mark.parametrize("vote", [0, 9])
def test_votes_without_value_checks(vote: int) -> None:
    p, votes = torch.rand(2, 4, 6), torch.randint(4, (2, 3, 6))
    votes[0, 0, 0] = vote
    loss = torch.compile(
        lambda p, votes: sj.jaccard_loss(p, sj.RaterLabel(votes), activation=None), fullgraph=True, backend="aot_eager"
    )
    assert loss(p, votes).isnan() == (vote == 9)


def test_statistics_add_up_by_sum() -> None:
    logits, label = torch.randn(3, 4, 6), torch.randint(4, (3, 6))
    parts = [sj.region_statistics(x[None], y[None]) for x, y in zip(logits, label, strict=True)]
    whole = sj.region_statistics(logits, label).total()
    for name, value in sum(parts).fields().items():
        torch.testing.assert_close(value, whole[name])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"activation": "Softmax"}, "activation"),
        ({"gradient": "scaled"}, "gradient"),
        ({"backend": "cuda"}, "backend"),
        ({"temperature": 0}, "temperature"),
        ({"ignore_index": None}, "ignore_index"),
        ({"smooth": None}, "smooth"),
        ({"per": ["image", "class"]}, "per"),
    ],
)
def test_options_are_checked_when_the_loss_is_made(options: dict[str, object], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}: expected .*{next(iter(options.values()))}"[:40]):
        sj.JaccardLoss(**options)


def test_double_backward_says_which_backend_gives_it() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss = sj.jaccard_loss(logits, torch.randint(3, (1, 4)))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        gradient.sum().backward()


def test_infinite_weights_of_annotators_are_refused() -> None:
    label = sj.RaterLabel(torch.zeros(1, 2, 4, dtype=torch.int64), torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="weights: expected finite"):
        sj.jaccard_loss(torch.randn(1, 3, 4), label)


def test_a_tile_of_one_pixel_leaves_the_gradient_of_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", 12)  # 4 classes: tiles of 3, 3 and 1 pixels
    logits, label = torch.randn(1, 4, 7, dtype=torch.float64, requires_grad=True), torch.randint(4, (1, 7))
    gradients = [
        torch.autograd.grad(sj.jaccard_loss(logits, label, backend=backend), logits)[0]
        for backend in ("chunked", "reference")
    ]
    torch.testing.assert_close(*gradients)
