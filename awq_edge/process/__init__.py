"""This process and those it starts: children that end with it, locks, limits, interruption."""
