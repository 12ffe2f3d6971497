"""Engines: for one TensorRT on one GPU architecture, each with the record of its build.

    engine = find_engine(bundle, "tensorrt-rtx", trt.__version__, "SM89")    # whole, of this bundle
    register_plugins(engine.manifest.plugin, trt)                # before TensorRT reads it
    cuda_engine = deserialize(engine, trt, log)

`awq_edge.tensorrt.builder` makes them. An ArtifactError from here means that building again helps;
a RuntimeUnavailableError, that it does not.
"""

from awq_edge.tensorrt.engines.contract import check_contract, plugin_contract, register_plugins
from awq_edge.tensorrt.engines.loading import TensorrtLog, deserialize
from awq_edge.tensorrt.engines.lookup import Engine, check, find_engine
from awq_edge.tensorrt.engines.manifest import (
    EngineManifest,
    EngineProfile,
    PluginContract,
    ShapeRange,
)
from awq_edge.tensorrt.engines.places import bundle_sha256, engine_name
from awq_edge.tensorrt.engines.profiles import profiles_of

__all__ = [
    "Engine",
    "EngineManifest",
    "EngineProfile",
    "PluginContract",
    "ShapeRange",
    "TensorrtLog",
    "bundle_sha256",
    "check",
    "check_contract",
    "deserialize",
    "engine_name",
    "find_engine",
    "plugin_contract",
    "profiles_of",
    "register_plugins",
]
