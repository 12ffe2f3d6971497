"""What hardware this is, and the device layer: what a session needs of CUDA."""
