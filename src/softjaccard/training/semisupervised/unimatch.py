"""UniMatch."""

from __future__ import annotations

from collections.abc import Sequence

from softjaccard.training.semisupervised.fixmatch import FixMatch


class UniMatch(FixMatch):
    """UniMatch: FixMatch's loss on two strong views, a quarter each, and on the weak view with features left out, half.

    Yang et al., "Revisiting weak-to-strong consistency in semi-supervised semantic segmentation", CVPR 2023, arXiv
    2208.09910, as in the authors' code, except that features of labelled images, whose perturbed outputs nobody looks
    at, are not perturbed.

    Args:
        weight: See :class:`SemiSupervisedMethod`.
        threshold: The confidence from which a pixel counts; the authors have 0.95, and 0 for Cityscapes.
    """

    strong_weights: Sequence[float] = (0.25, 0.25)
    perturbed_weight = 0.5
