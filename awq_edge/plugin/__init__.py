"""The kernels and the TensorRT plugin, seen from Python: packing, binding, op contract."""
