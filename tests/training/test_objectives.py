"""Labels of a training, and how a loss is shared out between heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from softjaccard import (
    CompoundLoss,
    CrossEntropyLoss,
    DiceLoss,
    JaccardLoss,
    RaterLabel,
    SmoothedLabel,
    boundary,
    dense,
    neighbourhood,
)
from softjaccard.errors import InputError
from softjaccard.models import NetworkOutput
from softjaccard.training import AveragedVotes, HardLabel, NeighbourLabel, RandomAnnotator, SmoothLabel, TrainingLabel
from softjaccard.training.objectives import Objective, Objectives, supervised_objectives

CLASSES = 4


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, CLASSES, (2, 3, 4), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    label[:, :3] = -100
    votes = torch.stack([label, label.roll(1, 2), label.roll(2, 1)], 1)
    return {"image": torch.rand(2, 3, 12, 16), "label": label, "votes": votes, "annotator": torch.tensor([2, 0])}


def output() -> NetworkOutput:
    generator = torch.Generator().manual_seed(1)
    logits, auxiliary = (torch.randn(2, CLASSES, *size, generator=generator) for size in ((3, 4), (6, 8)))
    return NetworkOutput(logits.requires_grad_(), auxiliary.requires_grad_(), None)


def full(logits: torch.Tensor) -> torch.Tensor:
    return interpolate(logits, size=(12, 16), mode="bilinear")


def test_smoothed_labels_are_made_of_the_hard_one() -> None:
    index = batch()["label"]
    for label, expected in (
        (SmoothLabel(), SmoothedLabel(index, 0.5, boundary(index, 3))),
        (SmoothLabel(0.2, kernel_size=5), SmoothedLabel(index, 0.2, boundary(index, 5))),
        (SmoothLabel(0.1, kernel_size=None), SmoothedLabel(index, 0.1)),
        (NeighbourLabel(), neighbourhood(index)),
        (NeighbourLabel(0.3, 5, 2.0), neighbourhood(index, 0.3, 5, 2.0)),
    ):
        for made, wanted in zip(dense(label(batch()).label, CLASSES), dense(expected, CLASSES), strict=True):
            torch.testing.assert_close(made, wanted)


def test_votes_become_a_distribution_or_one_of_them() -> None:
    votes = batch()["votes"]
    averaged = AveragedVotes()(batch())
    torch.testing.assert_close(dense(averaged.label, CLASSES)[0], dense(RaterLabel(votes), CLASSES)[0])
    torch.testing.assert_close(RandomAnnotator()(batch()).label, torch.stack([votes[0, 2], votes[1, 0]]))


def test_a_distribution_in_the_batch_comes_with_the_mask_of_its_pixels() -> None:
    distribution, mask = dense(RaterLabel(batch()["votes"]), CLASSES)
    target = AveragedVotes()(batch() | {"soft_label": distribution})
    assert target.label is not None
    assert torch.equal(target.mask, mask)
    assert not mask.all()
    loss = CompoundLoss(JaccardLoss())
    logits = torch.randn(2, CLASSES, 12, 16)
    torch.testing.assert_close(loss(logits, target.label, target.mask), loss(logits, RaterLabel(batch()["votes"])))


@pytest.mark.parametrize("label", [AveragedVotes(), RandomAnnotator()])
def test_data_without_votes_are_refused(label: AveragedVotes) -> None:
    data = batch()
    del data["votes"]
    with pytest.raises(InputError, match=r"model\.label.*votes.*image, label"):
        label(data)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (SmoothLabel, {"epsilon": 1.5}, "epsilon is 1.5"),
        (SmoothLabel, {"kernel_size": 4}, "kernel_size is 4.*odd"),
        (NeighbourLabel, {"epsilon": -0.5}, "epsilon is -0.5"),
        (NeighbourLabel, {"kernel_size": 1}, "kernel_size is 1.*odd"),
        (NeighbourLabel, {"kernel_size": None}, "kernel_size is None.*odd"),
        (NeighbourLabel, {"sigma": 0.0}, "sigma is 0.0.*at least 0.1"),
        (NeighbourLabel, {"sigma": None}, "sigma is None"),
        (SmoothLabel, {"epsilon": None}, "epsilon is None"),
    ],
)
def test_settings_of_smoothing_are_checked(
    kind: Callable[..., TrainingLabel], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        kind(**settings)


def test_the_mix_of_the_papers_code() -> None:
    """0.25 (0.5 CE_main + 0.5 CE_auxiliary) + 0.75 JML_main, on logits at image size."""
    loss, label, made = CompoundLoss(JaccardLoss()), SmoothLabel(), output()
    target = label(batch()).label
    total = Objectives(supervised_objectives(loss, label, 0.5))(made, batch())
    main, auxiliary = full(made.logits), full(made.auxiliary)
    cross_entropy = CrossEntropyLoss()
    expected = 0.75 * JaccardLoss()(main, target) + 0.125 * (
        cross_entropy(main, target) + cross_entropy(auxiliary, target)
    )
    torch.testing.assert_close(total, expected)
    gradients = torch.autograd.grad(total, [made.logits, made.auxiliary])
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [made.logits, made.auxiliary]), strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert loss.cross_entropy_weight == 0.25
    assert loss.process_group is None


def test_class_weights_go_to_both_heads_and_shares_need_not_be_halves() -> None:
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0, 4.0])
    made, label = output(), batch()["label"]
    for whole in (loss, CompoundLoss(JaccardLoss(), 0.0, 1.0, class_weight=[1.0, 2.0, 3.0, 4.0])):
        total = Objectives(supervised_objectives(whole, HardLabel(), 0.25))(made, batch())
        expected = 0.75 * loss(full(made.logits), label) + 0.25 * loss(full(made.auxiliary), label)
        torch.testing.assert_close(total, expected)


def test_an_auxiliary_head_needs_cross_entropy() -> None:
    with pytest.raises(InputError, match=r"auxiliary.*CompoundLoss.*but loss is DiceLoss"):
        supervised_objectives(DiceLoss(), HardLabel(), 0.5)


def test_losses_of_others_take_hard_labels_only() -> None:
    made = output()
    theirs = torch.nn.CrossEntropyLoss(ignore_index=-100)
    total = Objectives([Objective(theirs, HardLabel(), 2.0)])(made, batch())
    torch.testing.assert_close(total, 2 * theirs(full(made.logits), batch()["label"]))
    with pytest.raises(InputError, match="CrossEntropyLoss gets hard labels only"):
        Objectives([Objective(theirs, SmoothLabel())])(made, batch())


def test_a_label_that_objectives_share_is_made_once() -> None:
    made: list[int] = []

    class Counted(HardLabel):
        def __call__(self, batch: dict[str, torch.Tensor]) -> object:  # type: ignore[override]
            made.append(1)
            return super().__call__(batch)

    Objectives(supervised_objectives(CompoundLoss(JaccardLoss()), Counted(), 0.5))(output(), batch())
    assert len(made) == 1
