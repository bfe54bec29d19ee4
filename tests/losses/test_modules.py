"""The losses as torch modules: options, state, copies, devices, compilation, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

import oracle
import softjaccard as sj

WEIGHT = [1.0, 2.0, 0.5, 3.0, 1.5]


def public_losses(**options: Any) -> dict[str, Any]:
    """One of each public loss module."""
    return {
        "tversky": sj.TverskyLoss(0.3, 0.7, per={"image": 0.5, "class": 0.5}, class_weight=WEIGHT, **options),
        "jaccard": sj.JaccardLoss(form="metric2", class_weight=torch.tensor(WEIGHT), **options),
        "dice": sj.DiceLoss(form="product", classes="either", log=True, gamma=1.5, **options),
        "jaccard none": sj.JaccardLoss(per="image", classes=[0, 2], reduction="none", **options),
        "cross entropy": sj.CrossEntropyLoss(class_weight=WEIGHT, **options),
        "kl": sj.KLDivergenceLoss(temperature=2.0, **options),
        "compound": sj.CompoundLoss(sj.JaccardLoss(**options), class_weight=WEIGHT),
    }


NAMES = tuple(public_losses())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_copies_are_the_same_loss(name: str, compiled: bool) -> None:
    loss, case = public_losses()[name], oracle.make_case("teacher", dtype=torch.float32)
    expected = loss(case.logits, case.label)
    if compiled:
        loss.compile()
    stream = io.BytesIO()
    torch.save(loss, stream)
    stream.seek(0)
    pickled = pickle.loads(pickle.dumps(loss)), torch.load(stream, weights_only=False)
    for other in (copy.copy(loss), copy.deepcopy(loss), *pickled):
        assert other._compiled_call_impl is None, "what is compiled stays with the loss that it calls"
        assert torch.equal(other(case.logits, case.label), expected)
        assert repr(other) == repr(loss)


@pytest.mark.parametrize("name", NAMES)
def test_class_weight_is_a_buffer(name: str) -> None:
    loss = public_losses()[name]
    state = loss.state_dict()
    weights = [value for key, value in state.items() if key.split(".")[-1] == "class_weight"]
    assert len(weights) == (name in ("tversky", "jaccard", "cross entropy", "compound"))
    assert not list(loss.parameters())
    for moved in (loss.to(torch.float64), copy.deepcopy(loss).to("meta")):
        for key, value in moved.state_dict().items():
            assert value.shape == state[key].shape
    assert all(value.dtype == torch.float64 for value in loss.state_dict().values())
    assert all(value.is_meta for value in copy.deepcopy(loss).to("meta").state_dict().values())
    loss.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_module_moved_to_another_dtype_computes_the_same(dtype: torch.dtype) -> None:
    case = oracle.make_case("hard", dtype=torch.float32)
    for name, loss in public_losses().items():
        expected = loss(case.logits, case.label)
        assert float((loss.to(dtype)(case.logits, case.label) - expected).abs().max()) < 2e-3, name


@pytest.mark.parametrize(("kind", "backend"), [("hard", "chunked"), ("teacher", "reference")])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_graph_breaks(name: str, kind: str, backend: str) -> None:
    torch._dynamo.reset()
    loss = public_losses(backend=backend)[name]
    case = oracle.make_case(kind, mask="bool", size=(5, 6))
    expected = loss(case.logits, case.label, case.mask)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(case.logits, case.label, case.mask)
    oracle.close(compiled, expected, 1e-10)
    upstream = torch.rand_like(expected)
    slopes = [oracle.gradient_of((value * upstream).sum(), case.logits) for value in (compiled, expected)]
    oracle.close(slopes[0], slopes[1], 1e-10, "gradient")


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_compiled_training_step_that_makes_its_label(backend: str) -> None:
    torch._dynamo.reset()
    network = torch.nn.Conv2d(3, 5, 3, padding=1)
    loss = sj.CompoundLoss(sj.JaccardLoss(backend=backend, gradient="error_scaled"))

    def step(images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return loss(network(images), sj.SmoothedLabel(index, 0.3, sj.boundary(index)))

    images, index = torch.randn(2, 3, 9, 8), oracle.make_index((2, 9, 8), 5, -100)
    slopes = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        network.zero_grad()
        run(images, index).backward()
        slopes.append(network.weight.grad.clone())
    oracle.close(slopes[1], slopes[0], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_compiled_with_inductor(backend: str) -> None:
    torch._dynamo.reset()
    loss = sj.CompoundLoss(sj.JaccardLoss(backend=backend, per={"image": 0.5, "class": 0.5}), class_weight=WEIGHT)
    case = oracle.make_case("hard", dtype=torch.float32, mask="bool")
    expected, compiled = (
        run(case.logits, case.label, case.mask) for run in (loss, torch.compile(loss, fullgraph=True))
    )
    oracle.close(compiled, expected, 1e-5)
    oracle.close(oracle.gradient_of(compiled, case.logits), oracle.gradient_of(expected, case.logits), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str) -> None:
    case = oracle.make_case("teacher", dtype=torch.float32, mask="weights")
    loss = public_losses()[name]
    expected = loss(case.logits, case.label, case.mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(case.logits, case.label, case.mask)
    assert actual.dtype == torch.float32
    oracle.close(actual, expected, 1e-6)
    total = [oracle.gradient_of(value.sum(), case.logits) for value in (actual, expected)]
    oracle.close(total[0], total[1], 1e-6)


def test_functions_are_the_modules() -> None:
    case = oracle.make_case("smoothed", mask="bool")
    inputs = (case.logits, case.label, case.mask)
    options: dict[str, Any] = {"form": "metric2", "per": "image", "class_weight": WEIGHT, "temperature": 2.0}
    assert sj.jaccard_loss(*inputs, **options) == sj.JaccardLoss(**options)(*inputs)
    assert sj.dice_loss(*inputs, **options) == sj.DiceLoss(**options)(*inputs)
    assert sj.tversky_loss(*inputs, alpha=0.2, beta=0.9, **options) == sj.TverskyLoss(0.2, 0.9, **options)(*inputs)
    assert sj.cross_entropy(*inputs, class_weight=WEIGHT) == sj.CrossEntropyLoss(class_weight=WEIGHT)(*inputs)
    assert sj.kl_divergence(*inputs, temperature=2.0) == sj.KLDivergenceLoss(temperature=2.0)(*inputs)
    region = sj.DiceLoss(per="class")
    assert sj.compound_loss(*inputs, region=region) == sj.CompoundLoss(region)(*inputs)


def test_a_sum_of_losses_weighs_each_and_takes_those_of_other_libraries() -> None:
    logits = INPUT[0].clone().requires_grad_()
    parts = [sj.JaccardLoss(), torch.nn.CrossEntropyLoss(ignore_index=-100)]
    loss = sj.SumLoss(parts, [0.75, 0.25])
    expected = sj.compound_loss(logits, INPUT[1])
    torch.testing.assert_close(loss(logits, INPUT[1]), expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss(logits, INPUT[1]), expected)]
    torch.testing.assert_close(*gradients)
    assert "0.75" in repr(loss)
    with pytest.raises(ValueError, match=r"losses: expected scalars, got \(2, 4\) of CrossEntropyLoss"):
        sj.SumLoss([sj.JaccardLoss(), torch.nn.CrossEntropyLoss(reduction="none")], [1, 1])(logits, INPUT[1])


def test_mask_by_keyword_and_position() -> None:
    case = oracle.make_case("hard", mask="bool")
    loss = sj.JaccardLoss()
    assert loss(case.logits, case.label, mask=case.mask) == loss(case.logits, case.label, case.mask)


INPUT = (torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sj.TverskyLoss(-0.5, 1.0), ["alpha", "-0.5"]),
        (lambda: sj.TverskyLoss(0.5, -1.0), ["beta", "-1"]),
        (lambda: sj.JaccardLoss(form="jml1"), ["form", "jml1", "metric2", "product"]),
        (lambda: sj.JaccardLoss(per="batch"), ["per", "batch", "dataset", "image", "class"]),
        (lambda: sj.JaccardLoss(per={"image": 0.5, "pixel": 0.5}), ["per", "pixel", "dataset"]),
        (lambda: sj.JaccardLoss(per={"image": -0.5}), ["per", "-0.5"]),
        (lambda: sj.JaccardLoss(per={}), ["per"]),
        (lambda: sj.JaccardLoss(per={"image": 0.5, "class": 0.5}, reduction="none"), ["per", "reduction", "none"]),
        (lambda: sj.JaccardLoss(classes="absent"), ["classes", "absent", "present"]),
        (lambda: sj.JaccardLoss(classes=[]), ["classes"]),
        (lambda: sj.JaccardLoss(classes=[0, 3])(*INPUT), ["classes", "3"]),
        (lambda: sj.JaccardLoss(classes=[-1])(*INPUT), ["classes", "-1"]),
        (lambda: sj.JaccardLoss(classes=[0.5])(*INPUT), ["classes", "0.5"]),
        (lambda: sj.JaccardLoss(class_weight=[1.0, 2.0])(*INPUT), ["class_weight", "2", "3"]),
        (lambda: sj.JaccardLoss(class_weight=[1.0, -2.0, 1.0])(*INPUT), ["class_weight", "-2"]),
        (lambda: sj.CrossEntropyLoss(class_weight=[1.0, 2.0])(*INPUT), ["class_weight", "2", "3"]),
        (lambda: sj.CompoundLoss(sj.JaccardLoss(), class_weight=[1.0, 2.0])(*INPUT), ["class_weight", "2", "3"]),
        (lambda: sj.JaccardLoss(smooth=-1.0), ["smooth", "-1"]),
        (lambda: sj.JaccardLoss(gamma=0.5), ["gamma", "0.5"]),
        (lambda: sj.JaccardLoss(reduction="sum"), ["reduction", "sum", "mean", "none"]),
        (lambda: sj.JaccardLoss(activation="tanh")(*INPUT), ["activation", "tanh"]),
        (lambda: sj.JaccardLoss(temperature=0.0)(*INPUT), ["temperature", "0"]),
        (lambda: sj.JaccardLoss(gradient="scaled")(*INPUT), ["gradient", "scaled", "error_scaled"]),
        (lambda: sj.JaccardLoss(backend="cuda")(*INPUT), ["backend", "cuda", "reference"]),
        (lambda: sj.CrossEntropyLoss(activation="tanh")(*INPUT), ["activation", "tanh"]),
        (lambda: sj.KLDivergenceLoss(temperature=-1.0)(*INPUT), ["temperature", "-1"]),
        (lambda: sj.CompoundLoss(torch.nn.CrossEntropyLoss()), ["region", "CrossEntropyLoss"]),
        (lambda: sj.CompoundLoss(sj.JaccardLoss(reduction="none")), ["region", "reduction"]),
        (lambda: sj.CompoundLoss(sj.JaccardLoss(), region_weight=-1.0), ["region_weight", "-1"]),
        (lambda: sj.SumLoss([], []), ["weights", "0"]),
        (lambda: sj.SumLoss([sj.jaccard_loss], [1.0]), ["losses", "modules", "jaccard_loss"]),
        (lambda: sj.SumLoss([sj.JaccardLoss()], [0.5, 0.5]), ["weights", "2", "1"]),
        (lambda: sj.SumLoss([sj.JaccardLoss()], [-1.0]), ["weights[0]", "-1"]),
        (lambda: sj.JaccardLoss()(INPUT[0], INPUT[1] + 3), ["label", "3", "ignore_index"]),
        (lambda: sj.JaccardLoss()(INPUT[0], INPUT[0]), ["label", "sum"]),
        (lambda: sj.JaccardLoss().from_statistics(sj.region_statistics(*INPUT, want={"label"})), ["overlap", "want"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_options_name_the_argument_what_came_and_what_was_expected(make: Any, words: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"
