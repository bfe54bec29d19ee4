"""The error for input that the user can put right."""

from __future__ import annotations


class InputError(ValueError):
    """A file, folder or setting of the user's is missing or wrong; the message says which and what to do.

    The command line shows the message without a traceback.
    """
