"""Settings as plain data: read, which of them do not change what comes out, and what differs between two configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from softjaccard.errors import InputError

#: Where data are, how they are read, and how often a run is saved do not change what comes out of it; nor, but for
#: rounding, does the order of tensors in memory, of which processors and GPUs like different ones.
FREE_SETTINGS = frozenset({"root", "workers", "cache", "checkpoint_every", "channels_last"})
_SHOWN = 3


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Read a YAML file of the user's.

    Args:
        path: The file, in UTF-8.
        loader: May refuse more than YAML does.

    Raises:
        InputError: If it cannot be read; of what is no YAML with the line where reading ended, and that where it began
            to read what has no end.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), loader)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        end, begin = error.problem_mark, error.context_mark
        begun = f" ({error.context} in line {begin.line + 1})" if begin and begin.line != end.line else ""
        raise InputError(f"{path}, line {end.line + 1} is no YAML: {error.problem}{begun}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings of a config differ from those of another.

    Example:
        >>> changed_settings({"data": {"init_args": {"crop": [3, 4]}}}, {"data": {"init_args": {"flip": 0.5}}})
        ['data.crop: [3, 4], now not set', 'data.flip: not set, now 0.5']
    """
    first, second = _flat(before), _flat(now)
    missing = "not set"
    return [
        f"{key.replace('.init_args', '')}: {first.get(key, missing)}, now {second.get(key, missing)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key, missing) != second.get(key, missing)
    ]


def in_short(changes: Sequence[str]) -> str:
    """Join the first few changes, and say how many more there are.

    Example:
        >>> in_short(["a: 1, now 2", "b: 1, now 2", "c: 1, now 2", "d: 1, now 2", "e: 1, now 2"])
        'a: 1, now 2; b: 1, now 2; c: 1, now 2; and 2 more'
    """
    return "; ".join(changes[:_SHOWN]) + (f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by their dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }
