"""The Lightning module: what the network is shown, how losses add up, the average, and steps of labelled images."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from softjaccard.data.module import Batch
from softjaccard.data.scenes import ScenesData
from softjaccard.errors import InputError
from softjaccard.training import SemiSupervised, SupervisedSegmentation
from softjaccard.training.semisupervised import FixMatch, JMLSemiSupervised, SemiSupervisedMethod, UniMatch
from softjaccard.training.semisupervised.base import StreamLoss

METHODS = [FixMatch, UniMatch, JMLSemiSupervised]
NETWORK: dict[str, Any] = {"num_classes": 5, "architecture": "unet", "encoder": "tu-test_resnet"}


def model_of(method: SemiSupervisedMethod, **settings: Any) -> SemiSupervised:
    seed_everything(3, verbose=False)
    return SemiSupervised(method, **(NETWORK | settings))


def data(**settings: Any) -> ScenesData:
    options = {"size": 40, "training": 18, "validation": 2, "crop": (32, 32), "batch_size": 3, "seed": 1}
    return ScenesData(**(options | {"labelled": 0.2, "evaluation_batch_size": 2} | settings))


def batch(strong_views: int = 2) -> Batch:
    drawn = data()
    drawn.setup("fit")
    first = next(iter(drawn.train_dataloader()))
    return first | {name: first[name][:, :strong_views] for name in ("strong_image", "box")}


def trained(model: SupervisedSegmentation, steps: int, **settings: Any) -> dict[str, torch.Tensor]:
    """Train for some steps, and return the network's state."""
    seed_everything(4, verbose=False)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=steps,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, log_every_n_steps=1, **settings,
    )  # fmt: skip
    trainer.fit(model, data())
    return model.network.state_dict()


class Recorder(SemiSupervisedMethod):
    """Keeps what it is given."""

    def __init__(self, average_decay: float, weight: float = 1.0) -> None:
        super().__init__(weight, 0.5)
        self.average_decay = average_decay

    def forward(self, *given: Any) -> StreamLoss:
        self.given = given
        return StreamLoss(given[0][0].new_tensor(7.0), torch.tensor(0.5))

    def pseudo_label(self, logits: Any, size: Any) -> Any:
        raise NotImplementedError

    def stream(self, logits: Any, parts: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_every_view_gets_the_logits_that_are_its_own(weight: float, average_decay: float) -> None:
    model, drawn = model_of(Recorder(average_decay, weight)).eval(), batch()
    if model.average is not None:
        for parameter in model.average.parameters():
            parameter.data.mul_(1.1)
    asked = model.average or model.network
    loss, output = model.loss_and_output(drawn)
    strong, perturbed, own, partner, given = model.method.given
    assert given is drawn
    torch.testing.assert_close(output.logits, model.network(drawn["image"]))
    for view in range(2):
        torch.testing.assert_close(strong[view], model.network(drawn["strong_image"][:, view]))
    torch.testing.assert_close(own.detach(), asked(drawn["weak_image"]))
    torch.testing.assert_close(partner, asked(drawn["partner_image"]))
    assert not partner.requires_grad
    assert perturbed.shape == own.shape
    assert not torch.allclose(perturbed, model.network(drawn["weak_image"]))
    labelled = model.objectives(output, drawn)
    torch.testing.assert_close(loss, (labelled + weight * 7) / (1 + weight))


def test_the_weight_of_unlabelled_images_rises_step_by_step() -> None:
    model = model_of(Recorder(0.0, weight=2.0), ramp_up=0.5)
    losses, labelled = [], []
    objectives, loss_and_output = model.training_loss, model.loss_and_output
    model.training_loss = lambda *given: (labelled.append(objectives(*given)), labelled[-1])[1]  # type: ignore[method-assign]
    model.loss_and_output = lambda *given: (losses.append(loss_and_output(*given)), losses[-1])[1]  # type: ignore[method-assign]
    trained(model, 8, accumulate_grad_batches=2)
    assert len(losses) == len(labelled) == 16  # two batches a step, of which four are the rise
    for batch_number, ((loss, _), own) in enumerate(zip(losses, labelled, strict=True)):
        weight = 2 * math.exp(-5 * (1 - min(1, batch_number // 2 / 4)) ** 2)
        torch.testing.assert_close(loss, (own + weight * 7) / (1 + weight))


def test_fixmatch_perturbs_nothing_and_looks_at_one_strong_view(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown = model_of(FixMatch()), []
    forward = model.method.forward
    model.method.forward = lambda *given: (shown.append(given), forward(*given))[1]  # type: ignore[method-assign]
    assert model.strong_views == 1
    model.loss_and_output(batch(strong_views=1))
    ((strong, perturbed, *_),) = shown
    assert len(strong) == 1
    assert perturbed is None


def test_labels_of_partners_leave_the_running_averages_and_modes_alone() -> None:
    model, drawn = model_of(UniMatch()).train(), batch()
    model.network.encoder.eval()  # as somebody has who freezes them
    before = [deepcopy(norm.state_dict()) for norm in norms(model)]
    model._ask(drawn)
    assert [module.training for module in model.network.encoder.modules()] == [False] * len(
        list(model.network.encoder.modules())
    )
    assert model.network.body.decoder.training
    for norm, state in zip(norms(model), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


def test_labelled_and_weak_images_are_normalised_together() -> None:
    model, drawn = model_of(FixMatch()).train(), batch(strong_views=1)
    first = norms(model)[0]
    seen: list[int] = []
    first.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])))
    model.loss_and_output(drawn)
    assert seen == [3, 6, 3]  # partners, labelled and weak, strong
    assert first.num_batches_tracked == 2


def norms(model: SemiSupervised) -> list[nn.BatchNorm2d]:
    return [module for module in model.network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("kind", METHODS)
def test_with_weight_0_steps_are_those_of_the_labelled_images_alone(kind: type[SemiSupervisedMethod]) -> None:
    settings: dict[str, Any] = {"dropout": 0.3}
    seed_everything(3, verbose=False)
    expected = trained(SupervisedSegmentation(**(NETWORK | settings)), 3)
    model = model_of(kind(weight=0.0), **settings)
    start = deepcopy(model.network.state_dict())
    found = trained(model, 3)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert any(not torch.equal(value, start[name]) for name, value in found.items())
    other = trained(model_of(kind(weight=1.0, threshold=0.0), **settings), 3)
    assert any(not torch.equal(value, expected[name]) for name, value in other.items())


def test_the_average_follows_parameters_and_buffers() -> None:
    model, states = model_of(JMLSemiSupervised(average_decay=0.6)), []
    model.on_train_batch_end = lambda *_: states.append(deepcopy(model.network.state_dict()))  # type: ignore[method-assign]
    trained(model, 8, accumulate_grad_batches=2)
    states = states[1::2]  # one of two batches makes a step
    average = {name: value.double() for name, value in states[0].items()}
    for step, state in enumerate(states[1:], 1):
        decay = min(1 - 1 / (step + 1), 0.6)
        assert decay == {1: 0.5}.get(step, 0.6)
        average = {name: decay * average[name] + (1 - decay) * value for name, value in state.items()}
    assert len(states) == 8
    assert model.average is not None
    for name, value in model.average.state_dict().items():
        expected = average[name] if value.is_floating_point() else states[-1][name]
        torch.testing.assert_close(value, expected.to(value), rtol=1e-4, atol=1e-6)
    assert not any(module.training for module in model.average.modules())


@pytest.mark.parametrize("kind", METHODS)
def test_half_precision_trains_all_weights(kind: type[SemiSupervisedMethod]) -> None:
    """Logits made without gradient come first, whose cast weights autocast must not use again."""
    reached = []
    for enabled in (False, True):
        model = model_of(kind(threshold=0.0)).train()
        drawn = batch(model.strong_views)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = model.loss_and_output(drawn)
        loss.backward()
        assert torch.isfinite(loss)
        parameters = model.network.named_parameters()
        reached.append({name for name, each in parameters if each.grad is not None and each.grad.any()})
    assert reached[0] == reached[1]
    assert len(reached[0]) > 40


def test_the_network_is_tested_or_its_average() -> None:
    for test_average in (False, True):
        model = model_of(JMLSemiSupervised(average_decay=0.9), test_average=test_average).eval()
        model.average.body.segmentation_head[0].bias.data.add_(torch.arange(5.0))  # type: ignore[union-attr]
        image = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(model(image), (model.average if test_average else model.network)(image))
        assert model.tested_network is (model.average if test_average else model.network)


def test_there_must_be_something_to_learn_from_and_to_test() -> None:
    with pytest.raises(InputError, match=r"model\.test_average is true"):
        model_of(UniMatch(), test_average=True)
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match=rf"model\.ramp_up is {share}; expected a share"):
            model_of(UniMatch(), ramp_up=share)
    with pytest.raises(InputError, match=r"data\.labelled and data\.unlabelled are missing.*0\.125"):
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit(
            model_of(UniMatch()), data(labelled=None)
        )
