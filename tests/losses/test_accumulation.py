"""Micro-batches: loss and gradients of the two passes are those of one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import oracle
import ranks
import softjaccard as sj

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
PARTS = ranks.slices(ranks.SPLITS[3][0])


def micro_batches(kind: str = "hard", dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, ...]]:
    data = ranks.Data(dtype)
    return [data.part(kind, part) for part in PARTS]


def at_once(network: nn.Module, loss: Any, kind: str = "hard") -> tuple[torch.Tensor, torch.Tensor]:
    """The network run on one micro-batch after the other, all graphs kept, and the loss of all logits together."""
    logits = torch.cat([network(batch[0]) for batch in micro_batches(kind)])
    _, label, mask = ranks.Data(torch.float64).part(kind)
    return ranks.value_and_gradients(network, loss(logits, label, mask))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ranks.LOSSES)
def test_three_micro_batches_are_one_batch(name: str, dtype: torch.dtype) -> None:
    network = ranks.make_network(dtype)
    batches = iter(micro_batches(ranks.kind_of(name), dtype))
    value = sj.accumulated_backward(network, ranks.LOSSES[name](), batches)
    assert not value.requires_grad
    value, gradients = ranks.value_and_gradients(network, value)
    expected = ranks.joined(name, dtype)
    oracle.close(value, expected[0], TOLERANCE[dtype])
    oracle.close(gradients, expected[1], TOLERANCE[dtype], "gradients")


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return ranks.run(ranks.accumulated_on_ranks, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_micro_batches_of_two_ranks_are_one_batch(on_two_ranks: list[dict[Any, Any]], dtype: torch.dtype) -> None:
    for name in ranks.LOSSES:
        expected = ranks.joined(name, dtype)
        for results in on_two_ranks:
            oracle.close(results[dtype, name][0], expected[0], TOLERANCE[dtype], name)
            oracle.close(results[dtype, name][1], expected[1], TOLERANCE[dtype], name)


def test_gradients_are_averaged_over_ranks_once(on_two_ranks: list[dict[Any, Any]]) -> None:
    for results in on_two_ranks:
        assert results[torch.float32] == results[torch.float64] == 1


def test_buffers_that_differ_between_ranks(on_two_ranks: list[dict[Any, Any]]) -> None:
    for results in on_two_ranks:
        for broadcast in (True, False):
            (value, gradients), expected = results["buffers", broadcast]
            oracle.close(value, expected[0], 1e-12, f"{broadcast}")
            oracle.close(gradients, expected[1], 1e-12, f"gradients {broadcast}")
    differ = abs(on_two_ranks[0]["buffers", True][0][0] - on_two_ranks[0]["buffers", False][0][0])
    assert differ > 1e-4, "the buffers matter here"


@pytest.mark.parametrize("per", ranks.PERS)
def test_dropout_is_replayed(per: Any) -> None:
    network = ranks.make_network(torch.float64, dropout=0.4)
    loss = sj.CompoundLoss(sj.JaccardLoss(per=per))
    torch.manual_seed(5)
    expected = at_once(network, loss)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    value = sj.accumulated_backward(network, loss, micro_batches())
    assert torch.equal(torch.get_rng_state(), state), "the generator is where one run leaves it"
    value, gradients = ranks.value_and_gradients(network, value)
    oracle.close(value, expected[0], 1e-12)
    oracle.close(gradients, expected[1], 1e-12, "gradients")
    torch.manual_seed(6)
    assert abs(sj.accumulated_backward(network, loss, micro_batches()) - value) > 1e-4, "dropout matters here"


def stateful(norm: nn.Module) -> nn.Module:
    """A network that changes when it runs."""
    torch.manual_seed(1)
    return nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), norm, nn.Tanh(), nn.Conv2d(4, ranks.CLASSES, 1)).double()


def test_buffers_advance_once() -> None:
    network, once = stateful(nn.BatchNorm2d(4)), stateful(nn.BatchNorm2d(4))
    loss = sj.JaccardLoss(per="image")
    expected = at_once(once, loss)
    value = sj.accumulated_backward(network, loss, micro_batches(), batch_norm="allow")
    value, gradients = ranks.value_and_gradients(network, value)
    oracle.close(value, expected[0], 1e-12)
    oracle.close(gradients, expected[1], 1e-12, "gradients")
    for (name, buffer), after_one_run in zip(network.named_buffers(), once.buffers(), strict=True):
        oracle.close(buffer, after_one_run, 1e-12, name)
    assert dict(network.named_buffers())["1.num_batches_tracked"] == len(PARTS)


def test_batch_norm_in_training_is_refused() -> None:
    network = stateful(nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"network: batch norm in training mode \(1\)"):
        sj.accumulated_backward(network, sj.JaccardLoss(), micro_batches())
    assert network[1].num_batches_tracked == 0
    with pytest.raises(ValueError, match="batch norm"):  # normalises by the batch in evaluation too
        sj.accumulated_backward(stateful(nn.BatchNorm2d(4, track_running_stats=False)).eval(), sj.JaccardLoss(), [])


def test_batch_norm_in_evaluation_is_exact() -> None:
    network = stateful(nn.BatchNorm2d(4)).eval()
    loss = sj.DiceLoss(per="class")
    images, label, mask = ranks.Data(torch.float64).part("hard")
    expected = ranks.value_and_gradients(network, loss(network(images), label, mask))
    value, gradients = ranks.value_and_gradients(network, sj.accumulated_backward(network, loss, micro_batches()))
    oracle.close(value, expected[0], 1e-12)
    oracle.close(gradients, expected[1], 1e-12)


def test_statistics_of_ones_own() -> None:
    network, loss = ranks.make_network(torch.float64), sj.CompoundLoss(sj.JaccardLoss())
    box = torch.zeros(7, 6, dtype=torch.bool)
    box[2:5, 1:4] = True

    def statistics(batch: dict[str, torch.Tensor]) -> sj.RegionStatistics:
        logits, where = network(batch["image"]), box.expand(len(batch["image"]), 7, 6)
        inside = loss.statistics(logits, batch["label"], where)
        return inside + loss.statistics(logits, sj.SmoothedLabel(batch["label"], 0.2), ~where)

    def named(batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        return {"image": batch[0], "label": batch[1]}

    whole = named(ranks.Data(torch.float64).part("hard"))
    expected = ranks.value_and_gradients(network, loss.from_statistics(statistics(whole)))
    value = sj.accumulated_backward(network, loss, map(named, micro_batches()), statistics)
    value, gradients = ranks.value_and_gradients(network, value)
    oracle.close(value, expected[0], 1e-12)
    oracle.close(gradients, expected[1], 1e-12)


@pytest.mark.parametrize("around", ["statistics", "call"])
def test_autocast(around: str) -> None:
    network, loss = ranks.make_network(torch.float32), sj.CompoundLoss(sj.JaccardLoss())
    batches = micro_batches(dtype=torch.float32)
    images, label, mask = ranks.Data(torch.float32).part("hard")
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss(network(images), label, mask)
    expected, slopes = ranks.value_and_gradients(network, expected)

    def statistics(batch: tuple[torch.Tensor, ...]) -> sj.RegionStatistics:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch[0])
            assert logits.dtype == torch.bfloat16
            return loss.statistics(logits, *batch[1:])

    if around == "statistics":
        value = sj.accumulated_backward(network, loss, batches, statistics)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            value = sj.accumulated_backward(network, loss, batches)
    value, gradients = ranks.value_and_gradients(network, value)
    oracle.close(value, expected, 1e-4)
    oracle.close(gradients, slopes, 2e-2, "gradients")


def test_scale_and_what_is_there_already() -> None:
    network, loss = ranks.make_network(torch.float64), sj.JaccardLoss()
    plain = ranks.value_and_gradients(network, sj.accumulated_backward(network, loss, micro_batches()))
    sj.accumulated_backward(network, loss, micro_batches())
    value = sj.accumulated_backward(network, loss, micro_batches(), scale=lambda value: 8 * value)
    value, gradients = ranks.value_and_gradients(network, value)
    assert torch.equal(value, plain[0]), "the loss is not scaled"
    oracle.close(gradients, 9 * plain[1], 1e-12)


def test_gradient_scaler() -> None:
    networks = [ranks.make_network(torch.float32) for _ in range(2)]
    images, label, mask = ranks.Data(torch.float32).part("hard")
    for network in networks:
        optimiser, scaler = torch.optim.SGD(network.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
        loss = sj.JaccardLoss()
        if network is networks[0]:
            sj.accumulated_backward(network, loss, micro_batches(dtype=torch.float32), scale=scaler.scale)
        else:
            scaler.scale(loss(network(images), label, mask)).backward()
        scaler.step(optimiser)
        scaler.update()
    first, second = (torch.cat([value.flatten() for value in network.parameters()]) for network in networks)
    oracle.close(first, second, 1e-6)
    assert not torch.equal(first, torch.cat([v.flatten() for v in ranks.make_network(torch.float32).parameters()]))


def test_the_first_run_keeps_no_graph() -> None:
    network = ranks.make_network(torch.float64)
    runs: list[tuple[int, bool]] = []
    network.register_forward_hook(lambda _, inputs, output: runs.append((len(inputs[0]), output.requires_grad)))
    sj.accumulated_backward(network, sj.JaccardLoss(), micro_batches())
    sizes = ranks.SPLITS[3][0]
    assert runs == [(size, False) for size in sizes] + [(size, True) for size in sizes]


def test_what_cannot_be_accumulated() -> None:
    network = ranks.make_network(torch.float64)
    with pytest.raises(ValueError, match="at least one"):
        sj.accumulated_backward(network, sj.JaccardLoss(), [])
    with pytest.raises(ValueError, match=r"loss: expected a scalar, got a tensor of shape \(5,\)"):
        sj.accumulated_backward(network, sj.JaccardLoss(reduction="none"), micro_batches())
    with pytest.raises(ValueError, match=r"batch_norm: expected 'refuse' or 'allow', got 'no'"):
        sj.accumulated_backward(network, sj.JaccardLoss(), micro_batches(), batch_norm="no")  # type: ignore[arg-type]
    with torch.no_grad(), pytest.raises(ValueError, match=r"outside of torch\.no_grad"):
        sj.accumulated_backward(network, sj.JaccardLoss(), micro_batches())
    with pytest.raises(ValueError, match=r"network: expected a parameter that requires a gradient"):
        sj.accumulated_backward(network.requires_grad_(False), sj.JaccardLoss(), micro_batches())


def test_an_error_leaves_the_network_as_it_was() -> None:
    network = stateful(nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()))
    before, state = [buffer.clone() for buffer in network.buffers()], torch.get_rng_state()
    images, label, mask = micro_batches()[1]
    batches = [*micro_batches(), (images, label + ranks.CLASSES, mask)]
    with pytest.raises(ValueError, match="label"):
        sj.accumulated_backward(network, sj.JaccardLoss(), batches, batch_norm="allow")
    assert torch.equal(torch.get_rng_state(), state)
    for buffer, value in zip(network.buffers(), before, strict=True):
        assert torch.equal(buffer, value)


def test_cat() -> None:
    cases = [oracle.make_case("teacher", batch=batch, seed=batch) for batch in (1, 3)]
    parts = [case.statistics() for case in cases]
    joined = sj.RegionStatistics.cat(parts)
    assert joined.soft
    for name, value in joined.fields().items():
        assert torch.equal(value, torch.cat([part[name] for part in parts])), name
    hard = oracle.make_case("hard").statistics()
    assert sj.RegionStatistics.cat([hard, parts[0]]).soft
    for other, message in (
        (oracle.make_case("hard").statistics(want={"label"}), "different fields"),
        (oracle.make_case("hard", activation="sigmoid", classes=1).statistics(), "'softmax' and 'sigmoid'"),
        (oracle.make_case("hard", classes=4).statistics(), r"shapes \(3, 5\), \(3, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sj.RegionStatistics.cat([hard, other])
