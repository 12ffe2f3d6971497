"""From a bundle to engines: TensorRT, in a process of its own, one engine after the other."""

from awq_edge.tensorrt.builder.build import BuiltEngine, build_engine, build_engines

__all__ = ["BuiltEngine", "build_engine", "build_engines"]
