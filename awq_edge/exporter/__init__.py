"""Export: a checkpoint becomes a graph for one runtime, with its weights in one file.

    Checkpoint ─ canonical graph ─ lowering of the runtime ─ weight file, model, manifest

`bundle.py` is the stage; `graph.py` and docs/graph.md say what the canonical graph is,
`lower_<runtime>.py` what it becomes. `checks.py` alone needs no [host] extra.
"""
