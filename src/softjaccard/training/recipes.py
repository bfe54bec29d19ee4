"""Recipes: settings of a run put together from parts that ship with the package.

A recipe's name joins the names of its parts by "+", in any order: one for the data, and if need be others for the
network, the schedule (optimiser and length), the loss and the method (labels and where they come from), such as
`camvid`, `camvid+boundary-smoothing` or `voc+unet-resnet50d+sgd-80k+cross-entropy`. Whatever the order, a part wins
over those of a kind before its own in this list, and all over what every recipe begins with.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from softjaccard.errors import InputError, nearest_names
from softjaccard.models import ARCHITECTURES

KINDS = ("data", "network", "schedule", "loss", "method")
_USUAL = {"method": "hard"}
_FOLDER = Path(str(files("softjaccard"))) / "recipes"


def recipe_parts() -> dict[str, dict[str, str]]:
    """Return what each part is, by kind and name."""
    parts = {kind: {path.stem: _first_line(path) for path in sorted((_FOLDER / kind).glob("*.yaml"))} for kind in KINDS}
    named = (
        f"{each['architecture']} with {each['encoder']}, as in the paper's code" for each in ARCHITECTURES.values()
    )
    parts["network"] |= dict(zip(ARCHITECTURES, named, strict=True))
    return parts


def load_recipe(name: str) -> dict[str, Any]:
    """Put a recipe together.

    Args:
        name: Names of parts joined by "+"; where one is not named it is the data's usual one, and hard labels.

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
    recipe = _read(_FOLDER / "common.yaml")
    data = _read(_FOLDER / "data" / f"{chosen['data']}.yaml")
    chosen = {**_USUAL, **data.pop("defaults"), **chosen}
    for settings in (data, *(_part(kind, chosen[kind]) for kind in KINDS[1:] if kind in chosen)):
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


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def _part(kind: str, name: str) -> Mapping[str, Any]:
    path = _FOLDER / kind / f"{name}.yaml"
    return {"model": {"init_args": ARCHITECTURES[name]}} if kind == "network" and not path.exists() else _read(path)


def _read(path: Path) -> dict[str, Any]:
    part: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    other = part.pop("extends", None)
    return merge(_read(path.with_name(f"{other}.yaml")), part) if other else part


def _unknown(part: str, parts: Mapping[str, Mapping[str, str]]) -> str:
    known = [name for kind in KINDS for name in parts[kind]]
    return f"there is no part '{part}'. {nearest_names(part, known)} `softjaccard recipes` lists all."
