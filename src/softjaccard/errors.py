"""The error for input that the user can put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def users_error(where: str) -> Iterator[None]:
    """Tell in one line what only a batch shows, such as too few class weights, or an output that has diverged.

    Raises:
        InputError: In place of a TypeError or ValueError inside, with `where` before its message.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error
