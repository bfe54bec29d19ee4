"""Losses: formulas on region statistics.

Every loss is a module, called as ``loss(logits, label, mask=None)`` with a label of any kind, and a function of the
same name in small letters. ``loss.from_statistics(statistics)`` computes it from sums that are there already.

=======================  ==============================================================================
:class:`JaccardLoss`     one minus the soft IoU; right on soft labels by default (``form="metric"``)
:class:`DiceLoss`        one minus the soft Dice score
:class:`TverskyLoss`     both and everything between: alpha weighs false positives, beta false negatives
:class:`CrossEntropyLoss`, :class:`KLDivergenceLoss`  for labels of any kind, from the same sums
:class:`CompoundLoss`    a region loss and cross-entropy in one pass over the pixels
:class:`SumLoss`         any losses, each in a pass of its own
=======================  ==============================================================================

**Several ranks.** The mean of the ranks' region losses is not the loss of their joined batch. With
``process_group="world"`` every rank computes the loss of the joined batch, whatever the sizes of the parts, and the
gradients that DistributedDataParallel averages are its gradients; the same configuration runs on a single device::

    loss = CompoundLoss(JaccardLoss(process_group="world"))
    network = DistributedDataParallel(network)
    loss(network(images), label).backward()

This costs one small all-gather for each call of the loss (on the CPU two: the first compares what the ranks are about
to sum), and nothing in backward. All ranks of the group have to call the loss, or ``from_statistics``, equally often;
as for any collective, they wait for one that stopped with an error.
``reduction="none"`` gives the joined batch's losses of the classes under ``per="dataset"``, and those of the rank's own
images otherwise. A group given as an object is shared by copies of the loss and cannot be pickled; ``"world"`` can.
Under torch.compile the sum over ranks is a graph break.

**Parts of a batch.** :func:`accumulated_backward` is the same for micro-batches, one after the other.
"""

from softjaccard.losses.accumulation import accumulated_backward
from softjaccard.losses.compound import CompoundLoss, SumLoss, compound_loss
from softjaccard.losses.cross_entropy import CrossEntropyLoss, KLDivergenceLoss, cross_entropy, kl_divergence
from softjaccard.losses.region import (
    DiceLoss,
    JaccardLoss,
    RegionOptions,
    TverskyLoss,
    dice_loss,
    jaccard_loss,
    tversky_loss,
)

__all__ = [
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "JaccardLoss",
    "KLDivergenceLoss",
    "RegionOptions",
    "SumLoss",
    "TverskyLoss",
    "accumulated_backward",
    "compound_loss",
    "cross_entropy",
    "dice_loss",
    "jaccard_loss",
    "kl_divergence",
    "tversky_loss",
]
