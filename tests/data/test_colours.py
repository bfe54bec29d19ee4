"""Colours for every class."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from softjaccard.data.camvid import CamVid
from softjaccard.data.colours import UNLABELLED, class_colours, distinct_colours
from softjaccard.errors import InputError


def test_colours_are_distinct_and_do_not_depend_on_the_number_of_classes() -> None:
    colours = distinct_colours(1000)
    assert len({*colours, UNLABELLED}) == 1001
    assert all(type(channel) is int and 0 <= channel <= 255 for colour in colours for channel in colour)
    few = np.array([UNLABELLED, *colours[:20]])
    apart = np.sqrt(((few[:, None] - few) ** 2).sum(-1))[~np.eye(21, dtype=bool)]
    assert apart.min() > 60
    for count in (0, 1, 8, 9):
        assert distinct_colours(count) == colours[:count]
    with pytest.raises(InputError, match="4097 classes"):
        distinct_colours(4097)


def test_a_data_set_keeps_its_colours() -> None:
    assert class_colours(CamVid) == CamVid.colours
    assert class_colours(SimpleNamespace(num_classes=3)) == distinct_colours(3)
    assert class_colours(SimpleNamespace(num_classes=1, colours=np.array([[1, 2, 3]]))) == ((1, 2, 3),)
