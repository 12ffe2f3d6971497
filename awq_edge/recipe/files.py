"""Files of recipes: their places, the recipes that they extend, and the merge of their tables."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from awq_edge._package import PACKAGE
from awq_edge.artifacts.input_files import read_toml
from awq_edge.artifacts.paths import user_path
from awq_edge.errors import ConfigError
from awq_edge.recipe.validation import show

_MAX_EXTENDS = 8


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the packaged recipes, numbers in them compared as numbers."""
    names = [path.stem for path in recipe_folder().glob("*.toml") if path.name[0] != "_"]
    return sorted(names, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name))


def locate(name: str, near: Path | None) -> Path:
    """The file of a recipe's name or path. near: the file that extends it, searched beside."""
    if name.endswith(".toml"):
        path = (near.parent if near else Path()) / user_path(name, "--recipe")
        if not path.exists():
            raise ConfigError(f"no recipe file at {path}")
        return path
    beside = near.with_name(f"{name}.toml") if near and name == Path(name).name else None
    if near and beside and beside.is_file() and not beside.samefile(near):
        return beside
    path = recipe_folder() / f"{name}.toml"
    if name == Path(name).name and path.is_file():
        return path
    close = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    source = f"{near}: extends: " if near else ""
    raise ConfigError(
        f'{source}unknown recipe "{name}"; {hint}`awq-edge recipes` lists them, and a path must '
        "end in .toml"
    )


def read_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and the files that it extends, nearest first, `extends` removed."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    following: Path | None = path
    while following is not None:
        if any(following.samefile(seen) for seen, _ in chain):
            circle = " -> ".join([*(seen.stem for seen, _ in chain), following.stem])
            raise ConfigError(f"{path}: extends goes in a circle: {circle}")
        if len(chain) > _MAX_EXTENDS:
            raise ConfigError(f"{path}: extends is more than {_MAX_EXTENDS} recipes deep")
        data = read_toml(following, error=ConfigError)
        parent = data.pop("extends", None)
        chain.append((following, data))
        if parent is not None and not isinstance(parent, str):
            raise ConfigError(
                f'{following}: key "extends" is {show(parent)}; must be the name of a recipe in '
                "quotes"
            )
        following = None if parent is None else locate(parent, following)
    return chain


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A table with changes, tables in it key by key."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge(old, value)
        merged[key] = value
    return merged


def origin(chain: list[tuple[Path, dict[str, Any]]], loc: tuple[int | str, ...]) -> Path:
    """The file of the chain that sets the key at `loc`; the first one if none does."""
    for path, data in chain:
        value: Any = data
        for part in loc:
            value = value.get(part) if isinstance(value, dict) else None
            if value is None or isinstance(value, list):
                break
        if value is not None:
            return path
    return chain[0][0]
