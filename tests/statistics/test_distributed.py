"""Losses over several ranks: value and gradients are those of the joined batch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import oracle
import ranks
import softjaccard as sj
from softjaccard.statistics import distributed

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module", params=[2, 4])
def by_rank(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of two and of four processes computed."""
    return ranks.run(ranks.losses_of_parts, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    with ranks.initialised(0, 1, tmp_path):
        yield


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ranks.LOSSES)
def test_parts_are_the_joined_batch(by_rank: list[dict[Any, Any]], name: str, dtype: torch.dtype) -> None:
    value, gradients = ranks.joined(name, dtype)
    for sizes in ranks.SPLITS[len(by_rank)]:
        for results in by_rank:
            oracle.close(results[dtype, sizes, name][0], value, TOLERANCE[dtype], f"{sizes}")
            oracle.close(results[dtype, sizes, name][1], gradients, TOLERANCE[dtype], f"gradients {sizes}")
            assert torch.equal(results[dtype, sizes, name][0], by_rank[0][dtype, sizes, name][0])


@pytest.mark.parametrize("per", ["dataset", "image", "class"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_parts_are_the_oracles_joined_batch(by_rank: list[dict[Any, Any]], kind: str, per: str) -> None:
    names = [name for name in ranks.LOSSES if name.startswith(kind) and f" {per} " in name]
    assert len(names) == 4
    _, label, mask = ranks.Data(torch.float64).part(kind)
    pixels = oracle.pixels_of(ranks.make_logits(), label, mask=mask)
    for name in names:
        loss = ranks.LOSSES[name]()
        options = {key: getattr(loss, key) for key in ("alpha", "beta", "form", "classes", "smooth", "log", "gamma")}
        weight = None if loss.class_weight is None else loss.class_weight.tolist()
        expected, gradient = oracle.value_and_gradient(
            lambda sums, options=options, weight=weight: oracle.tversky(sums, per=per, class_weight=weight, **options),
            pixels,
        )
        # the mean over ranks of their gradients: zero but for the rank's own images
        actual = torch.cat([results["other"][name][1] for results in by_rank]) / len(by_rank)
        oracle.close(by_rank[0]["other"][name][0], expected, 1e-12, name)
        oracle.close(actual, gradient, 1e-12, name)


def test_without_reduction(by_rank: list[dict[Any, Any]]) -> None:
    _, label, mask = ranks.Data(torch.float64).part("hard")
    for per in ("dataset", "image"):
        expected = sj.JaccardLoss(per=per, reduction="none")(ranks.make_logits(), label, mask)
        tables = [results["other"][f"none {per}"] for results in by_rank]
        if per == "image":  # each rank has its own rows
            assert torch.equal(torch.cat(tables), expected)
        for table in tables if per == "dataset" else ():
            oracle.close(table, expected, 1e-12)


def test_peaks_are_not_added(by_rank: list[dict[Any, Any]]) -> None:
    for results in by_rank:
        oracle.close(results["other"]["peaks"], ranks.peaks(), 1e-12)


def test_added_statistics(by_rank: list[dict[Any, Any]]) -> None:
    _, label, mask = ranks.Data(torch.float64).part("hard")
    _, soft, _ = ranks.Data(torch.float64).part("soft")
    box = torch.zeros(7, 6, dtype=torch.bool)
    box[2:5, 1:4] = True
    pasted = torch.where(box, sj.dense(label, ranks.CLASSES)[0], soft)
    mask = mask * (~box | (label != -100))
    expected = sj.CompoundLoss(sj.JaccardLoss(per="image"))(ranks.make_logits(), pasted, mask)
    for results in by_rank:
        oracle.close(results["other"]["pasted"], expected, 1e-12)


def test_a_group_of_some_ranks(by_rank: list[dict[Any, Any]]) -> None:
    part = slice(0, sum(ranks.SPLITS[len(by_rank)][0][:2]))
    _, label, mask = ranks.Data(torch.float64).part("hard", part)
    expected = sj.DiceLoss()(ranks.make_logits()[part], label, mask)
    assert ["first two" in results["other"] for results in by_rank] == [True, True, False, False][: len(by_rank)]
    for results in by_rank[:2]:
        oracle.close(results["other"]["first two"], expected, 1e-12)


def test_ranks_that_disagree(by_rank: list[dict[Any, Any]]) -> None:
    for results in by_rank:
        assert len(results["errors"]) == 7, "every rank raises in every case"
        assert results["errors"] == by_rank[0]["errors"]
    classes, per_image, per, label, dtype, classes_later, label_later = by_rank[0]["errors"]
    for message, first, second in (
        (classes, "rank 0: C = 3", "rank 1: C = 4"),
        (per_image, "rank 0: C = 3", "rank 1: C = 4"),
        (per, "pixels 1;", "class 6"),
        (label, "hard label", "soft label"),
        (dtype, "torch.float32", "torch.float64"),
        (classes_later, "rank 0: C = 3", "rank 1: C = 4"),
        (label_later, "rank 0: C = 3, hard label", "rank 1: C = 3, soft label"),
    ):
        assert message.startswith("process_group: expected the same number of classes")
        assert first in message
        assert second in message


def test_ranks_that_disagree_unnoticed_are_nan(by_rank: list[dict[Any, Any]]) -> None:
    for results in by_rank:
        assert len(results["unnoticed"]) == len(ranks.LOSSES) - 1
        for name, (value, gradient) in results["unnoticed"].items():
            assert value.isnan(), name
            assert gradient.isnan().any(), name


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_one_rank_changes_no_bit(dtype: torch.dtype, backend: Any) -> None:
    for name, make in ranks.LOSSES.items():
        network = ranks.make_network(dtype)
        images, label, mask = ranks.Data(dtype).part(ranks.kind_of(name))
        results = []
        for group in (None, "world", dist.group.WORLD):
            value = make(process_group=group, backend=backend)(network(images), label, mask)
            results.append(ranks.value_and_gradients(network, value))
        for value, gradients in results[1:]:
            assert torch.equal(value, results[0][0]), name
            assert torch.equal(gradients, results[0][1]), name


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("always_compared", [("cpu",), ()])
def test_collectives_of_each_call(monkeypatch: pytest.MonkeyPatch, always_compared: tuple[str, ...]) -> None:
    calls = []
    plain = dist.all_gather
    monkeypatch.setattr(dist, "all_gather", lambda *args, **options: (calls.append(1), plain(*args, **options)))
    monkeypatch.setattr(distributed, "_ALWAYS_COMPARED", always_compared)
    for name, make in ranks.LOSSES.items():
        _, label, mask = ranks.Data(torch.float64).part(ranks.kind_of(name))
        loss = make(process_group="world")
        # Elsewhere than on the CPU only the first call with a layout asks the ranks whether they agree.
        for allowed in ((2,), (2,)) if always_compared else ((1, 2), (1,)):
            calls.clear()
            value = loss(ranks.make_logits().requires_grad_(), label, mask)
            assert len(calls) in allowed
            calls.clear()
            value.backward()
            assert not calls


@pytest.mark.usefixtures("one_rank")
def test_compiled_with_a_graph_break() -> None:
    torch._dynamo.reset()
    loss = sj.CompoundLoss(sj.JaccardLoss(per={"dataset": 0.5, "image": 0.5}, process_group="world"))
    logits = ranks.make_logits().requires_grad_()
    _, label, mask = ranks.Data(torch.float64).part("hard")
    expected, actual = (run(logits, label, mask) for run in (loss, torch.compile(loss, backend="aot_eager")))
    oracle.close(actual, expected, 1e-12)
    oracle.close(oracle.gradient_of(actual, logits), oracle.gradient_of(expected, logits), 1e-12)


def test_world_is_this_process_alone_without_torch_distributed() -> None:
    assert not dist.is_initialized()
    for name, make in ranks.LOSSES.items():
        _, label, mask = ranks.Data(torch.float64).part(ranks.kind_of(name))
        results = [make(process_group=group)(ranks.make_logits(), label, mask) for group in (None, "world")]
        assert torch.equal(*results)


def test_copies_and_pickles(tmp_path: Path) -> None:
    with ranks.initialised(0, 1, tmp_path):
        group = dist.group.WORLD
        loss = sj.CompoundLoss(sj.JaccardLoss(process_group=group, class_weight=[1.0, 2.0]))
        copied = copy.deepcopy(torch.nn.ModuleList([loss]))[0]
        for other in (copied, copy.copy(loss)):
            assert other.process_group is other.region.process_group is group
        assert copied.region.class_weight is not loss.region.class_weight
        with pytest.raises(TypeError, match=r"process_group: .* cannot be pickled; use 'world'"):
            pickle.dumps(loss)
        loss.process_group = None  # as the message says
        loaded = pickle.loads(pickle.dumps(loss))
        assert loaded.process_group is loaded.region.process_group is None
        loaded.process_group = group
        assert loaded.region.process_group is group
        with pytest.raises(TypeError, match=r"process_group: expected a torch\.distributed\.ProcessGroup"):
            loaded.process_group = "word"
    by_name = pickle.loads(pickle.dumps(sj.CompoundLoss(sj.JaccardLoss(process_group="world"))))
    assert by_name.process_group == by_name.region.process_group == "world"


def test_groups_that_cannot_be(tmp_path: Path) -> None:
    with ranks.initialised(0, 1, tmp_path):
        loss = sj.JaccardLoss(process_group=dist.group.WORLD)
    with pytest.raises(ValueError, match=r"process_group: .* not initialised"):
        loss(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64))
    for wrong in ("word", 0, [0, 1]):
        with pytest.raises(
            TypeError, match=r"process_group: expected a torch\.distributed\.ProcessGroup, 'world' or None"
        ):
            sj.CrossEntropyLoss(process_group=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ranks that are not in the group"):
        sj.JaccardLoss(process_group=dist.GroupMember.NON_GROUP_MEMBER)


@pytest.mark.usefixtures("one_rank")
def test_no_second_derivative() -> None:
    logits = ranks.make_logits().requires_grad_()
    loss = sj.JaccardLoss(backend="reference", process_group="world")
    (gradient,) = torch.autograd.grad(loss(logits, ranks.Data(torch.float64).labels["hard"]), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
