"""Other machines: the executor on a Ray cluster."""
