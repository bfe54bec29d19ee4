"""Recipes: settings of a run put together from parts that ship with the package.

A recipe's name joins the names of its parts by "+", in any order: one for the data, and if need be others for the
network and the method, such as `camvid`, `camvid+boundary-smoothing` or `scenes+deeplabv3plus-lite0+uniform-smoothing`.
A later part wins over an earlier one: common, data, network, method.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from softjaccard.errors import InputError

KINDS = ("data", "network", "method")
_DEFAULT_METHOD = "hard"


def recipe_parts() -> dict[str, dict[str, Path]]:
    """Return the files of the parts, by kind and name."""
    return {kind: {path.stem: path for path in sorted((_folder() / kind).glob("*.yaml"))} for kind in KINDS}


def describe_part(path: Path) -> str:
    """Return what the first line of a part's file says about it."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def load_recipe(name: str) -> dict[str, Any]:
    """Put a recipe together.

    Args:
        name: Names of parts joined by "+"; without a network the data's usual one, without a method hard labels.

    Raises:
        InputError: If a part is unknown, two are of the same kind, or none is for the data.

    Example:
        >>> load_recipe("scenes+boundary-smoothing")["model"]["init_args"]["label"]["init_args"]
        {'epsilon': 0.5, 'kernel_size': 3}
    """
    parts = recipe_parts()
    chosen: dict[str, str] = {}
    for part in name.split("+"):
        kind = next((kind for kind in KINDS if part in parts[kind]), None)
        if kind is None:
            raise InputError(f"--recipe: {_unknown(part, parts)}")
        if kind in chosen:
            raise InputError(f"--recipe: {chosen[kind]} and {part} are both for the {kind}; choose one of them.")
        chosen[kind] = part
    if "data" not in chosen:
        raise InputError(f"--recipe: {name} has no part for the data; add one of: {', '.join(parts['data'])}.")
    recipe = _read(_folder() / "common.yaml")
    data = _read(parts["data"][chosen["data"]])
    chosen = {"method": _DEFAULT_METHOD, **data.pop("defaults"), **chosen}
    for settings in (data, *(_read(parts[kind][chosen[kind]]) for kind in KINDS[1:])):
        recipe = merge(recipe, settings)
    return recipe


def merge(first: Mapping[str, Any], second: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return settings with others laid over them.

    An object of another class begins anew, without the settings of the one before; except a run's model and data, of
    which another class takes most of the same settings.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}})
        {'a': {'b': 4, 'c': 2}, 'd': 3}
    """
    merged = dict(first)
    for name, value in second.items():
        before = merged.get(name)
        if not isinstance(value, Mapping) or not isinstance(before, Mapping):
            merged[name] = value
        elif (
            depth > 0 and {"class_path"} <= before.keys() & value.keys() and before["class_path"] != value["class_path"]
        ):
            merged[name] = dict(value)
        else:
            merged[name] = merge(before, value, depth + 1)
    return merged


def _folder() -> Path:
    return Path(str(files("softjaccard") / "recipes"))


def _read(path: Path) -> dict[str, Any]:
    part: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    other = part.pop("extends", None)
    return merge(_read(path.with_name(f"{other}.yaml")), part) if other else part


def _unknown(part: str, parts: Mapping[str, Mapping[str, Path]]) -> str:
    known = [name for kind in KINDS for name in parts[kind]]
    near = get_close_matches(part, known, n=3, cutoff=0.5)
    hint = f"the nearest are: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
    return f"there is no part '{part}'; {hint} (softjaccard recipes lists all)."
