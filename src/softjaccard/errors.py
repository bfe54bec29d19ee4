"""The error for input that the user can put right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

_MOST_NAMES = 20


class InputError(ValueError):
    """A file, folder or setting of the user's is missing or wrong; the message says which and what to do.

    The command line shows the message without a traceback.
    """


class InputErrors(InputError):  # noqa: N818 (there are several)
    """Several such errors found together; the command line shows a line for each.

    Args:
        messages: One for each error.
    """

    def __init__(self, messages: Sequence[str]) -> None:
        """See the class."""
        super().__init__("\n".join(messages))
        self.messages = tuple(messages)


def check_settings(name: str, settings: object, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Check the values of some settings.

    Args:
        name: Of the settings.
        settings: What has them as attributes.
        checks: For each attribute its name, whether its value is valid, and what is.

    Raises:
        InputError: If one is not.
    """
    for attribute, valid, wanted in checks:
        if not valid:
            raise InputError(f"{name}: {attribute} is {getattr(settings, attribute)}, but must be {wanted}.")


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


def nearest_names(name: str, names: Iterable[str]) -> str:
    """Return a sentence with those of the valid names that are most like a wrong one, or with all if none is like it.

    Example:
        >>> nearest_names("camvit", ["camvid", "voc"]), nearest_names("x", ["camvid", "voc"]), nearest_names("x", [])
        ('Did you mean camvid?', 'There is camvid, voc.', 'There is nothing else.')
    """
    valid = {each.lower(): each for each in sorted(names)}
    near = get_close_matches(name.lower(), valid)
    if near:
        return f"Did you mean {' or '.join(valid[each] for each in near)}?"
    shown = ", ".join(list(valid.values())[:_MOST_NAMES]) or "nothing else"
    return f"There is {shown}{', ...' if len(valid) > _MOST_NAMES else ''}."
