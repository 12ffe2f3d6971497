"""All checks, each by itself: one that raises becomes a row that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.doctor import hardware, memory, power, software
from awq_edge.doctor.machine import Machine, this_machine
from awq_edge.doctor.recipes import choose_recipe
from awq_edge.doctor.report import DoctorReport, DoctorRow
from awq_edge.recipe.recipes import Recipe, load_recipe

Check = Callable[[Machine, Recipe], Iterable[DoctorRow]]
# In the order of the table.
CHECKS: Mapping[str, Check] = {
    "Python": hardware.python,
    "JetPack": hardware.jetpack_release,
    "GPU and driver": hardware.gpu,
    "CUDA": hardware.cuda,
    "TensorRT": software.tensorrt,
    "CUDA from Python": software.device_layer,
    "plugin libraries": software.plugin_libraries,
    "power": power.power,
    "memory": memory.memory,
    "disk": memory.disk,
    "extras": software.extras,
}
_REPORT = "report this line, with `awq-edge doctor --json -`"
_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")


def examine(
    machine: Machine | None = None,
    recipe_name: str | None = None,
    checks: Mapping[str, Check] = CHECKS,
) -> DoctorReport:
    """Run every check. Raises nothing for a check's result, nor for a check that fails.

    machine: None for this one.
    recipe_name: None for the recipe that fits the machine.
    """
    machine = this_machine() if machine is None else machine
    rows: list[DoctorRow] = []
    try:
        recipe, reason = choose_recipe(machine, recipe_name)
    except Exception as error:
        recipe, reason = load_recipe("cpu"), "the choice of a recipe failed"
        rows.append(_failed("recipe", error))
    for name, check in checks.items():
        try:
            rows += check(machine, recipe)
        except Exception as error:
            rows.append(_failed(name, error))
    return DoctorReport(
        recipe=recipe.name,
        recipe_reason=reason,
        ready=all(row.status not in ("missing", "failed") for row in rows),
        rows=tuple(rows),
        versions=versions(_PACKAGES),
        commit=source_commit(),
    )


def _failed(check: str, error: Exception) -> DoctorRow:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return DoctorRow(check=check, status="failed", found=words, fix=_REPORT)
