"""The kernel library from Python: interface, packing, loading, building, toolchain."""
