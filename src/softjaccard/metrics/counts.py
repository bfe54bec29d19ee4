"""True positives, false positives and false negatives: all that a score of predicted classes needs."""

from __future__ import annotations

import torch
from torch import Tensor

from softjaccard.labels.checks import describe, is_integer
from softjaccard.metrics.inputs import check_ids, check_num_classes, kept_pixels

#: Pixels counted at a time on the CPU, where each is read twice: few enough to be in the cache the second time.
_CHUNK = 2**19
#: Cells of a table of counts up to which ignored pixels may have rows of their own.
_CELLS = 2**16
_PLAIN = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def image_counts(
    predictions: Tensor, label: Tensor, num_classes: int, *, mask: Tensor | None = None, ignore_index: int = -100
) -> Tensor:
    """True positives, false positives and false negatives of every image and class, in pixels.

    Args:
        predictions: logits or probabilities, float ``(B, C, *spatial)``, of which the largest counts; or class ids,
            integer ``(B, *spatial)``.
        label: integer class ids ``(B, *spatial)``.
        num_classes: C, at least 2.
        mask: boolean ``(B, *spatial)``; pixels where it is false do not count.
        ignore_index: pixels with this label do not count, whatever is predicted there.

    Returns:
        int64 ``(B, C, 3)``, the last dimension tp, fp, fn.

    Raises:
        TypeError: ``label`` is not integer, or ``mask`` not boolean.
        ValueError: shapes differ, or a pixel that counts has an id that is no class.

    Example:
        >>> image_counts(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2, ignore_index=255)
        tensor([[[1, 0, 1],
                 [0, 1, 0]]])
    """
    ids, label = class_maps(predictions, label, num_classes, mask=mask, ignore_index=ignore_index)
    tables = [_confusion(*image, num_classes, ignore_index) for image in zip(ids, label, strict=True)]
    if not tables:
        return torch.zeros((0, num_classes, 3), dtype=torch.int64, device=label.device)
    confusion = torch.stack(tables)
    hits = confusion.diagonal(dim1=1, dim2=2)
    counts = torch.stack((hits, confusion.sum(1), confusion.sum(2)), -1)
    counts[..., 1:] -= hits.unsqueeze(-1)
    return counts


def class_maps(
    predictions: Tensor, label: Tensor, num_classes: int, *, mask: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The predicted ids and the label, ``(B, *spatial)``, the label ``ignore_index`` where nothing counts.

    Arguments are those of :func:`image_counts`; of class maps, types and shapes are checked here, not the ids.
    """
    check_num_classes(num_classes)
    if not is_integer(label):
        raise TypeError(
            f"label: expected integer class ids (B, *spatial), got {describe(label)}; "
            "IoU needs one class for each pixel, such as label.argmax(1) of a distribution"
        )
    spatial = tuple(label.shape)
    label = _plain(label)
    if mask is not None:
        label = torch.where(kept_pixels(label, spatial, mask, ignore_index), label.to(torch.int64), ignore_index)
    scores = (*spatial[:1], num_classes, *spatial[1:])
    if is_integer(predictions) and tuple(predictions.shape) == spatial:
        return _plain(predictions), label
    if predictions.is_floating_point() and tuple(predictions.shape) == scores:
        largest, ids = predictions.max(1)
        if bool((largest.isnan() & kept_pixels(label, spatial, None, ignore_index)).any()):
            raise ValueError("predictions: expected numbers, found NaN; the network's output may have diverged")
        return ids, label
    raise ValueError(
        f"predictions: expected floats of shape (B, C, *spatial) = {scores} or integers of shape (B, *spatial) = "
        f"{spatial} for this label, got {describe(predictions)}"
    )


def _plain(ids: Tensor) -> Tensor:
    """The ids in a type for which torch has all operations."""
    return ids if ids.dtype in _PLAIN else ids.to(torch.int64)


def _confusion(ids: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels of one image by label and predicted class, int64 (C, C)."""
    ids, label = ids.flatten(), label.flatten()
    # Rows for all ids from the first to the last that a label may have, so that nothing needs to be selected away.
    first, last = min(ignore_index, 0), max(ignore_index, num_classes - 1)
    if (last - first + 1) * num_classes > _CELLS:
        first, last = 0, num_classes - 1
    spare = last + 1  # the row of ignored pixels where ids that are no classes have to be replaced
    counts = torch.zeros((spare - first + 1) * num_classes, dtype=torch.int64, device=label.device)
    narrow = torch.int16 if len(counts) <= torch.iinfo(torch.int16).max else torch.int32  # counted faster than int64
    size = max(1, min(_CHUNK, len(label)) if label.device.type == "cpu" else len(label))
    buffers = torch.empty((2, size), dtype=narrow, device=label.device)
    beside = False  # whether a label is no class
    for part_ids, part_label in zip(torch.split(ids, size), torch.split(label, size), strict=True):
        rows, cells = buffers[:, : len(part_label)]
        low, high = _copy(part_label, rows)
        least, most = _copy(part_ids, cells)
        if low < first or high > last or least < 0 or most >= num_classes:
            kept = part_label.to(torch.int64) != ignore_index
            check_ids("label", part_label, kept, num_classes)
            check_ids("predictions", part_ids, kept, num_classes)
            low, high = _copy(torch.where(kept, part_label.to(torch.int64), spare), rows)
            _copy(torch.where(kept, part_ids, 0), cells)
        cells.add_(rows, alpha=num_classes)
        start = first if low < 0 else 0
        if start:
            cells -= start * num_classes
        beside |= low < 0 or high >= num_classes
        part_counts = counts[(start - first) * num_classes :]
        part_counts += torch.bincount(cells, minlength=len(part_counts))
    table = counts.view(-1, num_classes)[:-1]
    if first <= ignore_index <= last:
        table[ignore_index - first] = 0
    confusion = table[-first : num_classes - first]
    if beside and int(table.sum()) != int(confusion.sum()):  # between the classes and the ignored id
        check_ids("label", label, label.to(torch.int64) != ignore_index, num_classes)
    return confusion


def _copy(ids: Tensor, to: Tensor) -> tuple[int, int]:
    """Copy ids to a narrower type, whether they fit or not; the smallest and the largest, 0 without pixels."""
    if not len(ids):
        return 0, 0
    low, high = ids.aminmax()
    to.copy_(ids)
    return int(low), int(high)
