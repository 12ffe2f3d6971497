"""The AWQ paper's experiments on a small model: methods and formats beside each other.

    recording ─► treatments ─► workbench (perplexity, remembered) ─► experiments ─► tables, plots

Weights are quantized and dequantized in memory; no checkpoint is written, so that bits, groups and
methods that no layout holds can be compared too. Needs the [host] extra.
"""
