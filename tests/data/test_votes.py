"""The majority vote against a count at every pixel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from softjaccard.data.votes import majority_vote


@pytest.mark.parametrize("raters", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_the_majority_is_that_of_a_count(raters: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(raters)
    votes = torch.randint(0, 5, (raters, 13, 17), generator=generator)
    votes = torch.where(votes == 4, 255 if dtype == torch.uint8 else -100, votes).to(dtype)
    ignore = 255 if dtype == torch.uint8 else -100
    label = majority_vote(votes, 4, ignore)
    assert label.dtype == torch.int64
    ties = 0
    for place in np.ndindex(13, 17):
        counts = Counter(vote for vote in votes[(slice(None), *place)].tolist() if vote != ignore)
        most = [number for number, count in counts.items() if count == max(counts.values())]
        ties += len(most) > 1
        assert label[place] == (min(most) if most else ignore)
    assert ties > 20 or raters == 1
    assert (label == ignore).any() or raters > 2
