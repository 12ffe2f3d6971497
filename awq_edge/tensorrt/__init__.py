"""All of TensorRT: op contract, plugin, engines, builder and session."""
