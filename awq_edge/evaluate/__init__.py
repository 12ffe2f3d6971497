"""Measures of a model's quality: the same numbers for a model, a checkpoint and a bundle."""
