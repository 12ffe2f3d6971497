"""This process and its children: children that end with it, locks, limits, interruption."""
