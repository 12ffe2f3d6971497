"""Sensors of a machine: power, clocks, throttling. Each is one file; an absent one says why."""
