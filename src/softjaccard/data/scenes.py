"""The drawn scenes as a data set, which needs no files: with hard labels, or with the votes of several annotators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from softjaccard.data.module import SegmentationData, Split
from softjaccard.data.synthetic import SyntheticScenes
from softjaccard.data.votes import majority_vote
from softjaccard.errors import InputError


class Scenes(Dataset[dict[str, Tensor]]):
    """A stretch of :class:`SyntheticScenes`, each scene with its most probable label or with votes.

    Each item holds plain tensors: `image` float32 (3, H, W) in [0, 1]; `label` int64 (H, W); `index` int64 (), the
    position in the stretch; and if asked for `votes`, uint8 (R, H, W), the annotators' masks. The label then is that of
    most votes, as in a data set whose true label nobody knows.

    Args:
        source: All scenes.
        stretch: Which of them.
        votes: Whether scenes have votes.

    Example:
        >>> scenes = Scenes(SyntheticScenes(length=6, size=32), range(4, 6))
        >>> len(scenes), scenes.ids
        (2, ('scene 4', 'scene 5'))
    """

    classes = SyntheticScenes.classes
    num_classes = SyntheticScenes.num_classes
    ignore_index = SyntheticScenes.ignore_index

    def __init__(self, source: SyntheticScenes, stretch: range, *, votes: bool = False) -> None:
        """See the class."""
        self._source, self._stretch, self._votes = source, stretch, votes
        self.ids = tuple(f"scene {number}" for number in stretch)
        self._drawn: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._stretch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one scene; it is drawn once and kept."""
        index = range(len(self))[index]
        if index not in self._drawn:
            scene = self._source[self._stretch[index]]
            drawn = {"image": scene["image"], "label": scene["label"], "index": torch.tensor(index)}
            if self._votes:
                label = majority_vote(scene["votes"], self.num_classes, self.ignore_index)
                drawn |= {"votes": scene["votes"], "label": label}
            self._drawn[index] = drawn
        return self._drawn[index]


class ScenesData(SegmentationData):
    """Drawn scenes for training, validation and test, all different.

    Args:
        size: Height and width of a scene in pixels.
        training: Number of scenes to train on.
        validation: Number of scenes to validate on.
        test: Number of scenes to test on.
        scenes_seed: Of what is drawn; the run's own seed does not change the scenes.
        raters: Number of annotators, whose votes the scenes then have beside the majority's label; null for scenes with
            their most probable label alone.
        settings: As in `SegmentationData`.

    Raises:
        InputError: If a number is out of its range.
    """

    def __init__(
        self,
        *,
        size: int = 96,
        training: int = 384,
        validation: int = 48,
        test: int = 96,
        scenes_seed: int = 0,
        raters: int | None = None,
        **settings: Any,
    ) -> None:
        """See the class."""
        super().__init__(**settings)
        ends = (0, training, training + validation, training + validation + test)
        if min(training, validation, test) < 1:
            raise InputError(
                f"training, validation and test must be at least 1, but are {training}, {validation}, {test}."
            )
        self._stretches = dict(zip(("train", "val", "test"), map(range, ends, ends[1:]), strict=True))
        try:
            self._source = SyntheticScenes(ends[-1], size, raters=1 if raters is None else raters, seed=scenes_seed)
        except ValueError as error:
            raise InputError(f"data: {error}") from error
        self._votes = raters is not None

    def dataset(self, split: Split) -> Scenes:
        """Return one split's scenes."""
        return Scenes(self._source, self._stretches[split], votes=self._votes)
