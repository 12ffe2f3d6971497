"""Fit of a model on a device, from config.json alone; before a weight is downloaded."""
