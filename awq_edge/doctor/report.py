"""The result of `awq-edge doctor` as JSON (docs/doctor.md describes the keys)."""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record

# ok. missing: a step that the recipe needs does not work without it. warning: works, but worse.
# optional: not there, and the recipe does not need it. failed: the check itself raised.
Status = Literal["ok", "missing", "warning", "optional", "failed"]


class DoctorRow(Record):
    """One check's result.

    check: its name.
    found: the state of the machine.
    needed_for: the step, or "" for all.
    fix: the command that mends it, "" where nothing is to be mended.
    """

    check: str
    status: Status
    found: str
    needed_for: str = ""
    fix: str = ""


class DoctorReport(Manifest):
    """All checks of a machine.

    recipe: that the machine is compared with.
    recipe_reason: the reason for that recipe.
    ready: nothing that the recipe needs is missing.
    """

    format: Literal["awq-edge-doctor"] = "awq-edge-doctor"
    format_version: Literal[1] = 1
    recipe: str
    recipe_reason: str
    ready: bool
    rows: tuple[DoctorRow, ...]
    versions: dict[str, str]
    commit: str | None
