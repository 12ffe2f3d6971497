"""Which recipe a machine is held against, where none was named."""

from __future__ import annotations

import re

from awq_edge.device.jetson import read_board, read_release
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.memory import total_memory
from awq_edge.errors import ConfigError
from awq_edge.recipe import Recipe, list_recipes, load_recipe

_OLDER = "-jetpack6"


def choose_recipe(machine: Machine, name: str | None) -> tuple[Recipe, str]:
    """The recipe, and why this one. A name that is not a recipe's is said in the reason: a doctor
    that stops at a typing error helps nobody."""
    if name is not None:
        try:
            return load_recipe(name), "named by --recipe"
        except ConfigError as error:
            recipe, reason = choose_recipe(machine, None)
            return recipe, f"{error}; instead: {reason}"
    release = read_release(machine.root)
    if release is not None:
        found = _of_jetson(machine, release.jetpack)
        if found is not None:
            return found, f"{read_board(machine.root)}, Jetson Linux {release.release}"
    gpu = machine.gpu()
    if gpu is None:
        return load_recipe("cpu"), "no NVIDIA GPU is found"
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower().removeprefix("nvidia geforce ")).strip("-")
    slug = slug.removesuffix("-gpu")
    for recipe in list_recipes():
        if recipe.name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+gb", recipe.name):
            return recipe, f"the GPU is called {gpu.name}"
    return load_recipe("cuda"), f"{gpu.name} has no recipe of its own"


def _of_jetson(machine: Machine, jetpack: int | None) -> Recipe | None:
    """By the family in the board's name, the memory, and JetPack."""
    board = (read_board(machine.root) or "").lower().replace(" ", "-")
    memory = total_memory(machine)
    older = jetpack is not None and jetpack <= 6
    fitting = [
        recipe
        for recipe in list_recipes()
        if recipe.device.kind == "jetson"
        and _family(recipe.name) in board
        and (recipe.device.memory_bytes or 0) >= memory
    ]
    fitting.sort(key=lambda recipe: recipe.device.memory_bytes or 0)
    smallest = [r for r in fitting if r.device.memory_bytes == fitting[0].device.memory_bytes]
    wanted = [recipe for recipe in smallest if recipe.name.endswith(_OLDER) == older]
    return next(iter([*wanted, *smallest]), None)


def _family(name: str) -> str:
    """ "orin-nano" of "jetson-orin-nano-8gb-jetpack6"."""
    return re.sub(r"-\d+gb.*$", "", name.removeprefix("jetson-")).removesuffix(_OLDER)
