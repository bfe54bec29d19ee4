"""The masks of several annotators of one image."""

from __future__ import annotations

import torch
from torch import Tensor


def majority_vote(votes: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return the class with most votes at each pixel; of those with equally many the one with the lowest id.

    Args:
        votes: Integers (R, H, W), the masks of R annotators; other ids than those of the classes do not count.
        num_classes: C; the ids are 0 to C - 1.
        ignore_index: What pixels without votes get.

    Returns:
        int64 (H, W).

    Example:
        >>> majority_vote(torch.tensor([[[1, 2, 9]], [[1, 0, 9]], [[0, 9, 9]]]), num_classes=3, ignore_index=9)
        tensor([[1, 0, 9]])
    """
    label = votes.new_full(votes.shape[1:], ignore_index, dtype=torch.int64)
    most = torch.zeros_like(label)
    for number in range(num_classes):
        count = (votes == number).sum(0)
        label = torch.where(count > most, number, label)
        most = torch.maximum(most, count)
    return label
