"""What a user may have meant by a setting that there is not."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from softjaccard.errors import nearest_names

_UNKNOWN = (
    re.compile(r"^(?:(?P<owner>[\w.]+): )?Option '(?P<option>[\w.]+)' is not accepted"),
    re.compile(r"^(?:(?P<owner>[\w.]+): )?Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'"),
    re.compile(r"^(?:(?P<owner>[\w.]+): )?unrecognized arguments: --(?P<option>[\w.]+)"),
)


def with_hint(message: str, config: Mapping[str, Any], options: Mapping[str, Iterable[str]]) -> str:
    """Return a message about an unknown setting with the nearest known ones; any other as it is.

    Args:
        message: One line that begins with the dotted name of what does not know the setting.
        config: The other settings, whose class paths say what can be set.
        options: The names of the first level, each with those below it where no class path says them.

    Example:
        >>> config = {"model": {"class_path": "softjaccard.JaccardLoss"}}
        >>> with_hint("model: Option 'gama' is not accepted", config, {"model": ()})
        'there is no setting model.gama. Did you mean gamma?'
    """
    found = next((match for pattern in _UNKNOWN if (match := pattern.match(message))), None)
    if found is None:
        return message
    groups = found.groupdict()
    names = ".".join(filter(None, (groups["owner"], groups.get("group"), groups["option"]))).split(".")
    known: Iterable[str] = options
    where: Any = None
    for depth, name in enumerate(names):
        if name not in known:
            if not known or (depth == 0 and not get_close_matches(name, list(known))):
                break  # perhaps meant for the command itself
            return f"there is no setting {'.'.join(names[: depth + 1])}. {nearest_names(name, known)}"
        config, where = _below(config, name, where)
        known = (list(options[name]) if depth == 0 else []) or _names(config, where)
    return message


def _below(config: Mapping[str, Any], name: str, where: Any) -> tuple[Mapping[str, Any], Any]:
    """Return the settings under a name, and the class that takes them, as far as they are known."""
    inner = config.get("init_args", config).get(name)
    inner = inner if isinstance(inner, Mapping) else {}
    return inner, _class_of(inner) or _dataclass_of(where, name)


def _class_of(config: Mapping[str, Any]) -> Any:
    module, _, name = str(config.get("class_path", "")).rpartition(".")
    return getattr(import_module(module), name, None) if module else None


def _dataclass_of(owner: Any, name: str) -> Any:
    """Return the dataclass that a parameter of a class takes."""
    for constructor in _constructors(owner):
        try:
            hint = typing.get_type_hints(constructor).get(name)
        except NameError:  # a type that is imported for type checkers only
            continue
        for candidate in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(candidate):
                return candidate
    return None


def _names(config: Mapping[str, Any], where: Any) -> list[str]:
    """Return the parameters of a class and of those it derives from; the settings there are if it is none."""
    if not inspect.isclass(where):
        return list(config)
    names = [
        name
        for constructor in _constructors(where)
        for name, parameter in inspect.signature(constructor).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return list(dict.fromkeys(names))


def _constructors(kind: Any) -> list[Callable[..., None]]:
    """Return a class's constructor, and its parents' as far as each hands further arguments on."""
    found: list[Callable[..., None]] = []
    for parent in inspect.getmro(kind) if inspect.isclass(kind) else ():
        if parent is not object and "__init__" in vars(parent):
            found.append(vars(parent)["__init__"])
            kinds = {parameter.kind for parameter in inspect.signature(found[-1]).parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found
