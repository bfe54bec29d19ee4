"""How much of a class's label lies on pixels of other classes: python experiments/label_shares.py DATA_ROOT.

Prints two tables of CamVid's training masks at half resolution: in percent of the sum of a class's label over all
pixels, the part at pixels that are of another class; and that part itself, in pixels of a batch of eight crops of
160 x 224. A Jaccard loss asks for it to be predicted there, too.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader

from softjaccard import dense
from softjaccard.data.camvid import CamVidData
from softjaccard.data.transforms import IGNORE_INDEX
from softjaccard.training import NeighbourLabel, SmoothLabel

LABELS = {
    "uniform 0.1": SmoothLabel(0.1, kernel_size=None),
    "boundary 0.1": SmoothLabel(0.1),
    "boundary 0.3": SmoothLabel(0.3),
    "boundary 0.5": SmoothLabel(0.5),
    "neighbours 0.5": NeighbourLabel(0.5),
}
BATCH = 8 * 160 * 224


def main(root: str) -> None:
    """Print the tables."""
    data = CamVidData(root=root, scale=0.5)
    data.setup("fit")
    images = data.datasets["train"]
    classes = images.num_classes
    elsewhere, total = torch.zeros(len(LABELS), classes), torch.zeros(len(LABELS), classes)
    pixels = 0
    for batch in DataLoader(images, batch_size=16):
        index = batch["label"].masked_fill(batch["label"] == images.ignore_index, IGNORE_INDEX)
        hard, mask = dense(index, classes)
        pixels += mask.numel()
        for row, label in enumerate(LABELS.values()):
            value = dense(label({"label": index}).label, classes)[0] * mask.unsqueeze(1)
            total[row] += value.sum((0, 2, 3))
            elsewhere[row] += (value * (hard == 0)).sum((0, 2, 3))
    for table in (100 * elsewhere / total, elsewhere * BATCH / pixels):
        lines = [["", *images.classes], ["---", *["---:"] * classes]]
        lines += [[name, *(f"{value:.0f}" for value in row)] for name, row in zip(LABELS, table, strict=True)]
        sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
