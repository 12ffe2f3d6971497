"""A decoder's blocks: as tasks, on the calibration tokens, folded, searched and rounded."""
