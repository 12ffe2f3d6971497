"""Sensors of a machine: power, clocks, throttling. Each is one file; what is absent says why."""
