"""`awq-edge doctor`: the facts of this machine, and the packages or rights that a step lacks."""
