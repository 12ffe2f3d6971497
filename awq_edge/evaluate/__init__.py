"""Measuring how good a model is: the same numbers for a model, a checkpoint and a bundle."""
