"""What a review of the scores found."""

from __future__ import annotations

import pytest
import torch

from softjaccard.data.module import _EvaluationImages
from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.metrics import CalibrationError, FineGrainedIoU, boundary_counts


def test_an_ignored_id_may_be_the_first_that_is_no_class() -> None:
    predictions, label = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])
    assert boundary_counts(predictions, label, 2, 1).tolist() == [[[0, 1, 1], [0, 1, 1]]]
    assert torch.equal(
        boundary_counts(predictions, label, 2, 1, ignore_index=2), boundary_counts(predictions, label, 2, 1)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_calibration_in_a_network_of_half_precision(dtype: torch.dtype) -> None:
    probabilities, label = torch.randn(2, 3, 200, 200).softmax(1), torch.randint(3, (2, 200, 200))
    metric, plain = CalibrationError(3), CalibrationError(3)
    torch.nn.ModuleList([metric]).to(dtype)
    for each in (metric, plain):
        each.update(probabilities, label)
    assert metric.compute() == plain.compute()
    assert metric.reliability()[0, 0].sum() == 80_000


def test_the_index_of_an_evaluation_image_is_its_place_in_the_split() -> None:
    class Reordered(torch.utils.data.Subset):
        ignore_index = 255

    images = _EvaluationImages(Reordered(SyntheticScenes(4, size=32), [3, 1]))
    assert [int(images[place]["index"]) for place in range(2)] == [0, 1]


@pytest.mark.parametrize("quantiles", [(1e-6,), (33.3333333,), (0,)])
def test_quantiles_that_no_name_can_hold(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="quantiles: expected percentages"):
        FineGrainedIoU(3, quantiles=quantiles)
