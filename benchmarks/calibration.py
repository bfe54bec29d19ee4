"""Time and memory of `CalibrationError.update` on the CPU, beside one softmax and argmax over the same logits.

Logits of one image, 19 classes, 1024 x 2048 pixels, float32; normal ones as of a network that knows little, and the
same times 5 as of one that is sure. Each call is timed in turn with the others; medians of 7, in one process. Memory is
the peak of resident memory above what is resident before a call, divided by the size of the logits.
By hand: ``python benchmarks/calibration.py``; ``OMP_NUM_THREADS`` sets the number of threads.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from case import _status
from pathlib import Path

from softjaccard.metrics import CalibrationError

SHAPE = (1, 19, 1024, 2048)
REPETITIONS = 7
