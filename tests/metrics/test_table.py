"""The table of counts: ids, repeated images, ranks, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import score_ranks
from softjaccard.metrics import BoundaryIoU, FineGrainedIoU, boundary_counts, fine_grained_iou, image_counts


def example(images: int = 5) -> tuple[Tensor, Tensor]:
    ids, label = score_ranks.images()
    return ids[:images], label[:images]


def test_rows_come_sorted_by_id_without_repeats_and_then_those_without_id() -> None:
    ids, label = example()
    metric = FineGrainedIoU(4)
    metric.update(ids[:2], label[:2], image_ids=[12, -1])
    metric.update(ids[[2, 0, 3]], label[[2, 0, 3]], image_ids=torch.tensor([3, 12, 2**40]))
    metric.update(ids[[1, 4]], label[[1, 4]])
    counts, found = metric.table()
    assert found.tolist() == [3, 12, 2**40, -1, -1, -1]
    expected = image_counts(ids, label, 4)
    assert torch.equal(counts, expected[[2, 0, 3, 1, 1, 4]])
    torch.testing.assert_close(metric.compute(), fine_grained_iou(counts), rtol=0, atol=0)


def test_of_images_with_the_same_id_the_first_counts() -> None:
    metric = FineGrainedIoU(2)
    metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]), image_ids=[4])
    metric.update(torch.tensor([[1, 1]]), torch.tensor([[0, 1]]), image_ids=[4])
    assert metric.compute()["mIoU_D"] == 1


@pytest.mark.parametrize("metric", [FineGrainedIoU(4), BoundaryIoU(4, width=2)])
def test_memory_is_the_table_and_nothing_else(metric: Any) -> None:
    ids, label = example()

    def held() -> int:
        tensors = [value for value in vars(metric).values() if isinstance(value, Tensor)]
        tensors += [row for name in metric._defaults for row in getattr(metric, name)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert held() == 0
    for images in (1, 3, 2):
        metric.update(ids[:images], label[:images], image_ids=range(images))
    assert held() == 6 * (4 * 3 + 1) * 8


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Any]]]:
    return score_ranks.run(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", range(len(score_ranks.SHARES)))
def test_two_processes_give_the_result_of_one(by_rank: list[list[list[Any]]], case: int) -> None:
    shares, with_ids = score_ranks.SHARES[case]
    single = score_ranks.found(score_ranks.make_metrics(), (tuple(range(7)),), with_ids)
    for rank, results in enumerate(by_rank):
        for result, expected in zip(results[case], single, strict=True):
            assert torch.equal(result["table"][0], expected["table"][0])
            assert torch.equal(result["table"][1], expected["table"][1])
            assert result["scores"].keys() == expected["scores"].keys()
            for name, score in expected["scores"].items():
                assert torch.equal(result["scores"][name], score), name
            images = [i for batch in shares[rank] for i in batch]
            assert len(result["own"][1]) == (len(set(images)) if with_ids else len(images))  # after the sync as before


def test_the_functions_give_the_same() -> None:
    ids, label = score_ranks.images()
    fine, near = score_ranks.found(score_ranks.make_metrics(), ((0, 1), (2, 3, 4, 5, 6)), with_ids=False)
    assert torch.equal(fine["table"][0], image_counts(ids, label, 4))
    assert torch.equal(near["table"][0], boundary_counts(ids, label, 4, width=1))


def test_merging_of_states() -> None:
    ids, label = example()
    first, second = FineGrainedIoU(4), FineGrainedIoU(4)
    first.update(ids[:3], label[:3], image_ids=[0, 1, 2])
    second.update(ids[2:], label[2:], image_ids=[2, 3, 4])
    first.merge_state(second)
    assert torch.equal(first.table()[0], image_counts(ids, label, 4))


def test_forward_gives_the_batch_and_accumulates() -> None:
    ids, label = example(4)
    metric = FineGrainedIoU(4)
    for batch in ([0, 1], [2, 3]):
        alone = fine_grained_iou(image_counts(ids[batch], label[batch], 4))
        torch.testing.assert_close(metric(ids[batch], label[batch], image_ids=batch), alone)
    assert metric.table()[1].tolist() == [0, 1, 2, 3]
    metric.reset()
    assert len(metric.table()[0]) == 0


@pytest.mark.parametrize(
    ("image_ids", "error", "words"),
    [
        ([1.0, 2.0], TypeError, "image_ids: expected integers"),
        ([1], ValueError, "image_ids: expected one for each of 2 images"),
        (torch.tensor([[1, 2]]), ValueError, r"image_ids: .*\(1, 2\)"),
        ([0, -2], ValueError, "image_ids: expected at least 0, or -1 for none, found -2"),
    ],
)
def test_bad_ids_are_named(image_ids: Any, error: type[Exception], words: str) -> None:
    ids, label = example(2)
    with pytest.raises(error, match=words):
        FineGrainedIoU(4).update(ids, label, image_ids=image_ids)
