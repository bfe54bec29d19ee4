"""The error for input that the user can put right."""

from __future__ import annotations


class InputError(ValueError):
    """A file, folder or setting of the user's is missing or wrong; the message says which and what to do.

    The command line shows the message without a traceback.
    """


def first_line(error: Exception) -> str:
    """Return an error's name and the first line of its message.

    Example:
        >>> first_line(KeyError("a"))
        "KeyError: 'a'"
    """
    return "".join(f"{type(error).__name__}: {error}".splitlines()[:1])
