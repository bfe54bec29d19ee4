"""Semi-supervised training: what a network learns from images without labels, by labels that it makes itself.

A method makes a label of what the network says of a weak view of an image, and draws strong views of it there; a new
one is a subclass of :class:`SemiSupervisedMethod`. The rival that looks at labelled images only needs no method: it is
:class:`~softjaccard.training.SupervisedSegmentation` with the same data.

==========================  ==========================================================================================
:class:`FixMatch`           hard pseudo-labels where the network is confident, on one strong view
:class:`UniMatch`           the same on two strong views, and on the weak one with features left out
:class:`JMLSemiSupervised`  UniMatch's views with soft pseudo-labels and the Jaccard metric loss (JML-SSL)
==========================  ==========================================================================================
"""

from softjaccard.training.semisupervised.base import SemiSupervisedMethod
from softjaccard.training.semisupervised.fixmatch import FixMatch
from softjaccard.training.semisupervised.jml import JMLSemiSupervised
from softjaccard.training.semisupervised.module import SemiSupervised
from softjaccard.training.semisupervised.unimatch import UniMatch

__all__ = ["FixMatch", "JMLSemiSupervised", "SemiSupervised", "SemiSupervisedMethod", "UniMatch"]
