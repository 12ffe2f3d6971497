"""The result of `awq-edge doctor` as JSON (docs/doctor.md describes the keys)."""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record

# ok. missing: a step that the recipe needs does not work without it. warning: works, but worse.
# optional: not there, and the recipe does not need it. failed: the check itself raised.
Status = Literal["ok", "missing", "warning", "optional", "failed"]


class DoctorRow(Record):
    """One check's result."""

    check: str  # its name
    status: Status
    found: str  # the state of the machine
    needed_for: str = ""  # the step, or "" for all
    fix: str = ""  # the command that mends it, "" where nothing is to be mended


class DoctorReport(Manifest):
    """All checks of a machine."""

    format: Literal["awq-edge-doctor"] = "awq-edge-doctor"
    format_version: Literal[1] = 1
    recipe: str  # that the machine is compared with
    recipe_reason: str  # the reason for that recipe
    ready: bool  # nothing that the recipe needs is missing
    rows: tuple[DoctorRow, ...]
    versions: dict[str, str]
    commit: str | None
