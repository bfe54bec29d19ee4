"""A table with one row for each image: the state of the metrics that take averages over images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softjaccard.labels.checks import describe, is_integer
from softjaccard.metrics.inputs import check_num_classes

#: What stands for the id of an image that has none.
NO_ID = -1


class ImageTable(Metric):
    """Keeps some numbers of every image, and the image's id, gathered over ranks; a base class.

    The state is int64 rows of 1 + ``columns`` numbers, and nothing else grows.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self, num_classes: int, ignore_index: int, columns: int, **options: Any) -> None:
        """Start with no image; ``options`` are those of :class:`torchmetrics.Metric`."""
        super().__init__(**options)
        check_num_classes(num_classes)
        self.num_classes, self.ignore_index, self._columns = num_classes, ignore_index, columns
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def add(self, values: Tensor, image_ids: Tensor | Sequence[int] | None) -> None:
        """Add int64 values ``(B, columns)``; ids as in :meth:`CountsTable.update`."""
        ids = _as_ids(image_ids, values)
        cast(list[Tensor], self.rows).append(torch.cat((ids.unsqueeze(1), values), 1))

    def images(self) -> tuple[Tensor, Tensor]:
        """The images that this rank has seen, or those of all ranks after a sync, without repeated ids.

        Returns:
            Values, int64 ``(N, columns)``, and ids, int64 ``(N,)``: first the images with an id, sorted by it, then
            those without, whose id is -1, in the order of the ranks and updates.
        """
        rows = dim_zero_cat(self.rows) if len(self.rows) else self._no_rows()
        named = rows[:, 0] != NO_ID
        with_id = rows[named]
        order = torch.argsort(with_id[:, 0], stable=True)
        with_id = with_id[order]
        first = torch.ones(len(with_id), dtype=torch.bool, device=rows.device)
        first[1:] = with_id[1:, 0] != with_id[:-1, 0]
        rows = torch.cat((with_id[first], rows[~named]))
        return rows[:, 1:], rows[:, 0]

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Gather the rows of all ranks; one without images takes part with an empty table of the right shape."""
        if isinstance(self.rows, list) and not self.rows:
            self.rows.append(self._no_rows())
        super().sync(*arguments, **options)

    def _no_rows(self) -> Tensor:
        return torch.zeros((0, 1 + self._columns), dtype=torch.int64, device=self.device)


class CountsTable(ImageTable):
    """Keeps tp, fp and fn of every image and class, and the image's id, gathered over ranks; a base class.

    The state is int64 rows of 3 C + 1 numbers, and nothing else grows.
    """

    def __init__(self, num_classes: int, ignore_index: int, **options: Any) -> None:
        """Start with no image; ``options`` are those of :class:`torchmetrics.Metric`."""
        super().__init__(num_classes, ignore_index, 3 * num_classes, **options)

    @abstractmethod
    def counts(self, predictions: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
        """The counts (B, C, 3) of a batch."""

    def update(
        self,
        predictions: Tensor,
        label: Tensor,
        mask: Tensor | None = None,
        image_ids: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Add the images of a batch.

        Args:
            predictions: as in :func:`image_counts`.
            label: likewise.
            mask: likewise.
            image_ids: an integer of at least 0 for each image, unique over the data set, such as its index; of images
                with the same id only the first counts, as where a sampler repeats some to give all ranks as many. -1
                or None: no id, the image counts in any case.

        Raises:
            TypeError: as in :func:`image_counts`, or ``image_ids`` are not integers.
            ValueError: likewise, or they are not one for each image or less than -1.
        """
        self.add(self.counts(predictions, label, mask).flatten(1), image_ids)

    def table(self) -> tuple[Tensor, Tensor]:
        """The counts, int64 ``(N, C, 3)``, and ids, int64 ``(N,)``, of the images; see :meth:`images`."""
        counts, ids = self.images()
        return counts.reshape(-1, self.num_classes, 3), ids


def _as_ids(image_ids: Tensor | Sequence[int] | None, values: Tensor) -> Tensor:
    if image_ids is None:
        return values.new_full((len(values),), NO_ID)
    ids = torch.as_tensor(image_ids, device=values.device)
    if not is_integer(ids) and ids.numel():
        raise TypeError(f"image_ids: expected integers, got {describe(image_ids)}")
    if ids.shape != values.shape[:1]:
        raise ValueError(f"image_ids: expected one for each of {len(values)} images, got {describe(image_ids)}")
    if bool((ids < NO_ID).any()):
        raise ValueError(f"image_ids: expected at least 0, or -1 for none, found {int(ids.min())}")
    return ids.to(torch.int64)
