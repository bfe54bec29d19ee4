"""The chunked backend's threads: same result for any number, and torch's own setting is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Thread

import pytest
import torch

import softjaccard as sj
from softjaccard.statistics import threads
from softjaccard.statistics.threads import in_threads


@pytest.fixture(autouse=True)
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("softjaccard.statistics.tiles.TILE_ELEMENTS", 64)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def value_and_gradient(label: torch.Tensor | sj.TeacherLabel) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(2, 5, 9, 11, generator=torch.Generator().manual_seed(3)).requires_grad_()
    loss = sj.CompoundLoss(sj.JaccardLoss(backend="chunked"))(logits, label)
    return loss, torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("kind", ["hard", "teacher"])
def test_the_result_does_not_depend_on_the_number_of_threads(kind: str) -> None:
    label = torch.randint(5, (2, 9, 11)) if kind == "hard" else sj.TeacherLabel(torch.randn(2, 5, 9, 11))
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(value_and_gradient(label))
        assert torch.get_num_threads() == number
    for result in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(result, results[0], strict=True))


def test_the_number_of_threads_is_restored_after_an_error() -> None:
    torch.set_num_threads(2)
    label = torch.randint(5, (2, 9, 11))
    label[1, 4, 4] = 77
    with pytest.raises(ValueError, match="77"):
        value_and_gradient(label)
    assert torch.get_num_threads() == 2


def test_torchs_operators_use_one_thread_in_each() -> None:
    torch.set_num_threads(3)

    def work(part: int, scratch: None) -> tuple[int, int, bool]:
        return part, torch.get_num_threads(), torch.is_grad_enabled()

    found = list(in_threads(work, range(12), lambda: None, torch.device("cpu")))
    assert found == [(part, 1, False) for part in range(12)]
    assert torch.get_num_threads() == 3


def test_callers_in_several_threads() -> None:
    torch.set_num_threads(2)
    label = torch.randint(5, (2, 9, 11))
    expected, results = value_and_gradient(label), []
    callers = [Thread(target=lambda: results.extend(value_and_gradient(label) for _ in range(5))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 20
    assert all(torch.equal(mine, one) for result in results for mine, one in zip(result, expected, strict=True))
    assert torch.get_num_threads() == 2


def test_under_inference_mode() -> None:
    torch.set_num_threads(2)
    logits, label = torch.randn(2, 5, 9, 11), torch.randint(5, (2, 9, 11))
    with torch.inference_mode():
        inside = sj.jaccard_loss(logits.clone(), label)
    torch.testing.assert_close(inside.clone(), sj.jaccard_loss(logits, label))


def test_every_caller_gets_its_own_number_back() -> None:
    torch.set_num_threads(3)
    first_in, second_in, first_out = Event(), Event(), Event()
    counts = {}

    def first() -> None:
        with threads._one_thread_each():
            counts["inside"] = torch.get_num_threads()
            first_in.set()
            second_in.wait(10)
        counts["first"] = torch.get_num_threads()
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with threads._one_thread_each():  # of a thread new to torch
            second_in.set()
            first_out.wait(10)
        counts["second"] = torch.get_num_threads()

    callers = [Thread(target=first), Thread(target=second)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert counts == {"inside": 1, "first": 3, "second": 3}
    assert torch.get_num_threads() == 3
