"""Quantizers side by side on one model: this project's methods and peers that install from PyPI.

    rows ─► making (a checkpoint, a bundle, a peer's model; timed) ─► eval divergence ─► table

All are measured by one evaluator on the same tokens, and calibrated on the same ids. Peers run in
an interpreter of their own, `scripts/peers/`, and leave a plain model with dequantized weights.
"""
