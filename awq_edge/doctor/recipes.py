"""The choice of the recipe that a machine is compared with, where none was named."""

from __future__ import annotations

import re

from awq_edge.device.jetson import read_board, read_modules, read_release
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.memory import installed_memory
from awq_edge.doctor.setting import jetpack, on_jetson
from awq_edge.errors import ConfigError
from awq_edge.kernels.architectures import OLDEST, dotted
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe

_OLDER, _LAST_OF_OLDER = "-jetpack6", 6


def choose_recipe(machine: Machine, name: str | None) -> tuple[Recipe, str]:
    """The recipe, and the reason for it. A name that is no recipe's is said in the reason: a doctor
    that stops at a typing error helps nobody."""
    if name is not None:
        try:
            return load_recipe(name), "named by --recipe"
        except ConfigError as error:
            recipe, reason = choose_recipe(machine, None)
            return recipe, f"{error}; instead: {reason}"
    if on_jetson(machine):
        of_module = _of_jetson(machine)
        if of_module is not None:
            return of_module
    gpu = machine.gpu()
    if gpu is None:
        return load_recipe("cpu"), "no NVIDIA GPU is found"
    if gpu.compute_capability < OLDEST:
        return load_recipe("cpu"), (
            f"{gpu.name} has compute capability {dotted(gpu.compute_capability)}, and the kernels "
            f"need {dotted(OLDEST)}"
        )
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower().removeprefix("nvidia geforce ")).strip("-")
    slug = slug.removesuffix("-gpu")
    for recipe in list_recipes():
        if recipe.name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+gb", recipe.name):
            return recipe, f"the GPU is called {gpu.name}"
    return load_recipe("cuda"), f"{gpu.name} has no recipe of its own"


def _of_jetson(machine: Machine) -> tuple[Recipe, str] | None:
    """A Jetson's recipe by the module's part number, which a carrier's maker and a name in free
    text do not change; where no recipe has it, by the kind of module and its memory; then by
    JetPack."""
    jetsons = [recipe for recipe in list_recipes() if recipe.device.kind == "jetson"]
    known = {number.partition("-")[0] for recipe in jetsons for number in recipe.device.modules}
    modules = [number for number in read_modules(machine.root) if number.partition("-")[0] in known]
    release = read_release(machine.root)
    board = read_board(machine.root) or "a Jetson"
    where = board + (f", Jetson Linux {release.release}" if release is not None else "")
    for module in modules:
        exact = [recipe for recipe in jetsons if module in recipe.device.modules]
        if exact:
            return _of_jetpack(machine, exact), f"module {module}: {where}"
    kinds = {module.partition("-")[0] for module in modules}
    alike = [
        recipe
        for recipe in jetsons
        if kinds & {number.partition("-")[0] for number in recipe.device.modules}
    ]
    if not kinds and read_modules(machine.root):  # a module before Orin
        return None
    fitting = _of_memory(machine, alike or _of_gpu(machine, jetsons))
    if not fitting:
        return None
    reason = (
        f"module {modules[0]} has no recipe of its own, the nearest by its memory"
        if modules
        else "by GPU and memory, as no device tree shows the module (a container hides it; "
        "--recipe names another)"
    )
    return _of_jetpack(machine, fitting), f"{reason}: {where}"


def _of_gpu(machine: Machine, recipes: list[Recipe]) -> list[Recipe]:
    """The recipes of the GPU's architecture; all where there is no driver."""
    gpu = machine.gpu()
    if gpu is None:
        return recipes
    capability = f"{gpu.compute_capability // 10}.{gpu.compute_capability % 10}"
    return [recipe for recipe in recipes if recipe.device.compute_capability == capability]


def _of_memory(machine: Machine, recipes: list[Recipe]) -> list[Recipe]:
    """The recipes of the smallest memory that holds what the system sees, or of the largest."""
    memory = installed_memory(machine)
    sizes = sorted({recipe.device.memory_bytes or 0 for recipe in recipes})
    size = next((size for size in sizes if size >= memory), sizes[-1] if sizes else 0)
    return [recipe for recipe in recipes if recipe.device.memory_bytes == size]


def _of_jetpack(machine: Machine, recipes: list[Recipe]) -> Recipe:
    """The recipe for the installed JetPack, or the first."""
    installed = jetpack(machine)
    older = installed is not None and installed.major <= _LAST_OF_OLDER
    wanted = [recipe for recipe in recipes if recipe.name.endswith(_OLDER) == older]
    return next(iter([*wanted, *recipes]))
