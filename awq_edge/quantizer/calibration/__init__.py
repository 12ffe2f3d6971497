"""Calibration: texts, pictures, and the statistics that are kept of them."""
