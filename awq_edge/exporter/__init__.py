"""Export: a checkpoint becomes a graph for one runtime, with its weights in one file.

    Checkpoint ─ canonical graph ─ lowering of the runtime ─ weight file, model, manifest

`graph.py` and docs/graph.md say what the canonical graph is; `lower_<runtime>.py` what it becomes.
"""

from __future__ import annotations

from awq_edge.exporter.bundle import check_export, export_checkpoint
from awq_edge.exporter.lowerings import lowering_names, require_lowering
from awq_edge.exporter.overrides import check_forms, check_overrides

__all__ = [
    "check_export",
    "check_forms",
    "check_overrides",
    "export_checkpoint",
    "lowering_names",
    "require_lowering",
]
