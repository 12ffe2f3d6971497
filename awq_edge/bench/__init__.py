"""`awq-edge bench`: measures a loaded bundle, and compares two measurements."""
