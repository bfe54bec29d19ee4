"""The losses of unlabelled images, against dense ones from the formulas in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import oracle
import ranks
import unlabelled_streams as streams
from softjaccard.training.objectives import ready_for_training
from softjaccard.training.semisupervised import FixMatch, JMLSemiSupervised, SemiSupervisedMethod, UniMatch

JML = JMLSemiSupervised
HARD = ((FixMatch, (1.0,), None), (UniMatch, (0.25, 0.25), 0.5))


def check(method: SemiSupervisedMethod, made: streams.Outputs, expected: list[tuple[float, Any, Any]]) -> None:
    """Compare with (weight, value, gradient) of each stream."""
    value, _ = ready_for_training(method)(*made)
    oracle.close(value, sum(weight * each for weight, each, _ in expected), 1e-11)
    gradients = torch.autograd.grad(value, made.trained())
    for gradient, (weight, _, wanted) in zip(gradients, expected, strict=True):
        oracle.close(gradient, weight * wanted, 1e-10)


@pytest.mark.parametrize("threshold", [0.0, 0.8, 0.95])
@pytest.mark.parametrize(("kind", "weights", "perturbed_weight"), HARD)
def test_hard_labels(kind: type[FixMatch], weights: Any, perturbed_weight: float | None, threshold: float) -> None:
    made = streams.outputs(len(weights), perturbed_weight is not None)
    views = [*enumerate(weights), *([] if perturbed_weight is None else [(None, perturbed_weight)])]
    expected = []
    for logits, (view, weight) in zip(made.trained(), views, strict=True):
        target = streams.pasted(made, view)
        expected.append((weight, *streams.hard_stream(logits, target, threshold)))
    check(kind(threshold=threshold), made, expected)


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({}, {"classes": "present", "class_threshold": 0.5}),
        ({"threshold": 0.7, "classes": "all"}, {"classes": "all"}),
        ({"threshold": 0.8, "temperature": 0.5}, {"classes": "present", "class_threshold": 0.5}),
        ({"per": "image", "threshold": 0.8}, {"per": "image", "classes": "present", "class_threshold": 0.5}),
        ({"confidence": "weight", "threshold": 0.9}, {"classes": "present", "class_threshold": 0.5}),
        (
            {"confidence": "classes", "threshold": 0.9995, "per": {"image": 0.4, "class": 0.6}},
            {"per": {"image": 0.4, "class": 0.6}, "classes": "present", "class_threshold": 0.9995},
        ),
    ],
)
def test_soft_labels(options: dict[str, Any], formula: dict[str, Any]) -> None:
    """Sums inside and outside of the boxes, at low resolution, are those of labels pasted at full resolution."""
    made = streams.outputs(2, perturbed=True)
    threshold, rule = options.get("threshold", 0.95), options.get("confidence", "mask")
    expected = []
    for logits, (view, weight) in zip(made.trained(), ((0, 0.25), (1, 0.25), (None, 0.5)), strict=True):
        confidence = streams.pasted(made, view).confidence
        weights = {
            "mask": (confidence >= threshold).astype(float),
            "weight": (confidence / threshold).clip(max=1),
            "classes": 1 + 0 * confidence,
        }
        target = streams.pasted(made, view, options.get("temperature", 1.0))
        expected.append((weight, *streams.soft_stream(logits, target, weights[rule], **formula)))
    check(JML(**options), made, expected)


def test_the_counted_share_is_that_of_valid_pixels() -> None:
    made = streams.outputs(1, perturbed=False)
    target = streams.pasted(made, 0)
    share = (target.valid & (target.confidence >= 0.9)).sum() / target.valid.sum()
    assert 0.2 < share < 0.8
    one_view = JML(threshold=0.9)
    one_view.strong_weights = (1.0,)
    for method in (FixMatch(threshold=0.9), one_view):
        assert ready_for_training(method)(*made).counted.item() == pytest.approx(share)


@pytest.mark.parametrize("method", [FixMatch(threshold=1.0), UniMatch(threshold=1.0), JML(threshold=1.0)])
def test_streams_below_the_threshold_have_no_loss_and_no_gradient(method: SemiSupervisedMethod) -> None:
    made = streams.outputs(len(method.strong_weights), bool(method.perturbed_weight))
    value, counted = ready_for_training(method)(*made)
    assert (value.item(), counted.item()) == (0, 0)
    for gradient in torch.autograd.grad(value, made.trained()):
        assert not gradient.any()


@pytest.mark.parametrize("kind", [FixMatch, UniMatch, JML])
def test_nothing_but_padding_has_no_loss(kind: type[SemiSupervisedMethod]) -> None:
    method = kind(threshold=0.0)
    made = streams.outputs(len(method.strong_weights), bool(method.perturbed_weight))
    for name in ("weak_valid", "partner_valid"):
        made.batch[name].fill_(False)
    value, _ = ready_for_training(method)(*made)
    assert value.item() == 0
    for gradient in torch.autograd.grad(value, made.trained()):
        assert not gradient.any()


@pytest.mark.parametrize("kind", [FixMatch, UniMatch, JML])
def test_labels_carry_no_gradient(kind: type[SemiSupervisedMethod]) -> None:
    method = kind(threshold=0.5)
    made = streams.outputs(len(method.strong_weights), bool(method.perturbed_weight))
    asked = made._replace(own=streams.leaf(made.own), partner=streams.leaf(made.partner))
    value, _ = ready_for_training(method)(*asked)
    value.backward()
    assert asked.own.grad is None
    assert asked.partner.grad is None
    assert all(logits.grad.any() for logits in asked.trained())


@pytest.mark.parametrize("kind", [FixMatch, UniMatch, JML])
def test_labels_may_be_anything_where_nothing_is_valid(kind: type[SemiSupervisedMethod]) -> None:
    method = ready_for_training(kind(threshold=0.5))
    made = streams.outputs(len(method.strong_weights), bool(method.perturbed_weight))
    made.batch["weak_valid"][1] = made.batch["box"][1] = False
    expected = method(*made).value
    made.own[1] = made.partner[1] = torch.nan
    torch.testing.assert_close(method(*made).value, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -1.0}, "weight"), ({"threshold": 1.5}, "threshold"), ({"temperature": 0.0}, "temperature"),
        ({"confidence": "pixels"}, "confidence"), ({"confidence": "classes", "classes": "all"}, "classes"),
        ({"average_decay": 1.0}, "average_decay"), ({"per": "pixel"}, "per"),
        ({"region_weight": -1.0}, "region_weight"),
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JML(**options)


def test_two_devices_have_the_loss_of_all_images(tmp_path: Path) -> None:
    results = ranks.run(streams.losses_of_parts, 2, tmp_path)
    whole = streams.losses(slice(0, 3))
    for name, (value, counted, *gradients) in whole.items():
        for result in results:
            torch.testing.assert_close(result[name][:2], [value, counted], msg=name)
        for position, gradient in enumerate(gradients, 2):
            # the mean over ranks of their gradients: zero but for the rank's own images
            joined = torch.cat([result[name][position] for result in results]) / 2
            torch.testing.assert_close(joined, gradient, msg=name)
