"""The hardware of this machine, and the device layer: the calls of CUDA that a session needs."""
