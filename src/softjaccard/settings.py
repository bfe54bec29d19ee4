"""Settings as plain data: what differs between two configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by their dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }
