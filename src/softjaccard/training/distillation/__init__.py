"""Knowledge distillation: terms that draw a student to a teacher, and a cache of the teacher's logits.

A term is added to the losses on the hard label. All take the outputs of both networks and the mask of the pixels that
have a label; a new one is a subclass of :class:`DistillationTerm`.

=========================================  ==========================================================================
:class:`KLDistillation`                    plain distillation: the teacher's probabilities at each pixel
:class:`JMLDistillation`                   JML-KD: the same and the Jaccard metric loss
:class:`ChannelWiseDistillation`           CWD: where in the image a class is
:class:`CorrelationDistillation`           DIST: correlations over classes and over pixels
:class:`StructuredDistillation`            SKD: probabilities at each pixel, and similarities of the parts of an image
:class:`CrossImageRelationalDistillation`  CIRKD: similarities of the pixels of a batch
=========================================  ==========================================================================
"""

from softjaccard.training.distillation.base import DistillationTerm
from softjaccard.training.distillation.cache import TeacherCache
from softjaccard.training.distillation.cirkd import CrossImageRelationalDistillation
from softjaccard.training.distillation.cwd import ChannelWiseDistillation
from softjaccard.training.distillation.dist import CorrelationDistillation
from softjaccard.training.distillation.jml import JMLDistillation
from softjaccard.training.distillation.kl import KLDistillation
from softjaccard.training.distillation.module import Distillation
from softjaccard.training.distillation.skd import StructuredDistillation

__all__ = [
    "ChannelWiseDistillation",
    "CorrelationDistillation",
    "CrossImageRelationalDistillation",
    "Distillation",
    "DistillationTerm",
    "JMLDistillation",
    "KLDistillation",
    "StructuredDistillation",
    "TeacherCache",
]
