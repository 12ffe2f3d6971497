"""Exporting a checkpoint into a bundle for one runtime.

    checkpoint ─ program ─ emitter of the runtime ─ weight file, model, manifest

`bundle.py` is the stage; docs/graph.md and docs/cuda-backend.md say what is emitted. Needs the
[host] extra, but for the checks.
"""
