"""Boundary IoU against a transcription that looks at every pixel's window, and an erosion with OpenCV's meaning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import score_oracle
from softjaccard.metrics import BoundaryIoU, boundary_counts


def patches(images: int, num_classes: int, spatial: tuple[int, ...], seed: int) -> Tensor:
    """Maps with connected regions: coarse noise, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(num_classes, (images, *(-(-size // 4) for size in spatial)), generator=generator)
    for axis, size in enumerate(spatial, start=1):
        coarse = coarse.repeat_interleave(4, axis).narrow(axis, 0, size)
    return coarse


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("spatial", [(29,), (13, 18), (5, 9, 7)])
def test_equals_the_transcription(spatial: tuple[int, ...], width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    label = patches(5, 4, spatial, seed=0)
    label[label == 2] = 1  # class 2 is only predicted
    label[3] = 1  # one class: no contour
    noise = torch.rand(label.shape, generator=generator)
    ids = torch.where(noise < 0.1, patches(5, 4, spatial, seed=1), label)
    label[noise > 0.95] = 255
    label[4] = 255
    mask = torch.rand(label.shape, generator=generator) < 0.98
    kept = mask & (label != 255)
    ids[~kept] = 77
    metric = BoundaryIoU(4, width, ignore_index=255)
    for batch in ([0], [1, 2, 3, 4]):
        metric.update(ids[batch], label[batch], mask[batch])
    table = score_oracle.boundary_table(ids.numpy(), label.numpy(), kept.numpy(), 4, width)
    assert metric.table()[0].tolist() == [[list(cell) for cell in image] for image in table]
    expected = score_oracle.scores(table)
    scores = metric.compute()
    assert set(scores) == {f"BoundaryIoU_{name}_{width}px" for name in ("D", "I", "active_D")}
    assert scores[f"BoundaryIoU_D_{width}px"].item() == pytest.approx(expected["mIoU_D"], abs=1e-12)
    assert scores[f"BoundaryIoU_I_{width}px"].item() == pytest.approx(expected["mIoU_I"], abs=1e-12)
    assert scores[f"BoundaryIoU_active_D_{width}px"].tolist() == expected["active_D"]


def test_bands_are_what_repeated_erosion_takes_off() -> None:
    """The authors' construction, inside the image: erosion by a 3 x 3 square, as often as the band is wide."""
    label, width = patches(1, 3, (24, 31), seed=3), 3
    counts = boundary_counts(label, label, 3, width)
    for c in range(3):
        mask = np.pad((label[0] == c).numpy(), width, mode="edge")  # beyond the border it goes on
        eroded = mask
        for _ in range(width):
            around = np.pad(eroded, 1, mode="edge")
            shifted = [around[y : y + eroded.shape[0], x : x + eroded.shape[1]] for y in range(3) for x in range(3)]
            eroded = np.logical_and.reduce(shifted)
        band = (mask & ~eroded)[width:-width, width:-width]
        assert band.sum() > 0
        assert counts[0, c].tolist() == [band.sum(), 0, 0]


def test_padding_with_ignored_pixels_changes_nothing() -> None:
    label, ids = patches(2, 3, (12, 17), seed=0), patches(2, 3, (12, 17), seed=1)
    expected = boundary_counts(ids, label, 3, 2)
    padded = F.pad(label, (3, 5, 1, 7), value=-100)
    assert torch.equal(boundary_counts(F.pad(ids, (3, 5, 1, 7)), padded, 3, 2), expected)


def test_logits_are_taken_too() -> None:
    label, ids = patches(2, 3, (12, 17), seed=0), patches(2, 3, (12, 17), seed=1)
    logits = F.one_hot(ids, 3).movedim(-1, 1).float()
    assert torch.equal(boundary_counts(logits, label, 3, 2), boundary_counts(ids, label, 3, 2))


def test_large_objects_do_not_hide_their_contours() -> None:
    label = torch.zeros(1, 100, 100, dtype=torch.long)
    label[:, 10:90, 10:90] = 1
    ids = torch.zeros_like(label)
    ids[:, 12:92, 12:92] = 1
    metric = BoundaryIoU(2, width=2)
    metric.update(ids, label)
    assert metric.compute()["BoundaryIoU_D_2px"] < 0.2


@pytest.mark.parametrize("width", [0, -1, 1.5])
def test_widths_that_are_none(width: float) -> None:
    with pytest.raises(ValueError, match="width: expected a whole number"):
        BoundaryIoU(3, width)  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"label: .*0 to 2.*ignore_index=255"):
        boundary_counts(label, torch.full_like(label, 255), 3, 1)
    with pytest.raises(ValueError, match=r"predictions: .*0 to 2, found \[3\]"):
        boundary_counts(label + 3, label, 3, 1)
    with pytest.raises(ValueError, match="predictions: expected floats of shape"):
        boundary_counts(label[:, :2], label, 3, 1)
    with pytest.raises(ValueError, match="label: expected at least one spatial dimension"):
        boundary_counts(torch.zeros(2).long(), torch.zeros(2).long(), 3, 1)
