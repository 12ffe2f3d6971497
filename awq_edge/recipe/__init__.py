"""Recipes: a target device and the defaults for it, with their units and their errors."""
