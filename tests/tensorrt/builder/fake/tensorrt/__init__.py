"""A TensorRT that builds nothing: what the builder asks of it is written down as JSON.

FAKE_TENSORRT_VERSION: what it says it is. FAKE_TENSORRT_RECORD: where to write. FAKE_TENSORRT: how
it fails (parse, build, profile, abort, killed, no_builder, other_cache), or empty.
FAKE_TENSORRT_WAITS: seconds that a build takes.
Names and arguments are those of TensorRT's Python module, 10.3 and 10.16.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))
from tests.tensorrt import stub_tensorrt

__version__ = os.environ["FAKE_TENSORRT_VERSION"]
_registry = stub_tensorrt.Registry()
_record: dict[str, Any] = {"profiles": [], "pools": {}, "previews": [], "phases": 0}
PLAN = b"an engine"
TIMINGS = b"timings"

DataType = stub_tensorrt.DataType
TensorFormat = stub_tensorrt.TensorFormat
PluginFieldType = stub_tensorrt.PluginFieldType
PluginField = stub_tensorrt.PluginField
PluginFieldCollection = stub_tensorrt.PluginFieldCollection
IPluginV3 = stub_tensorrt.IPluginV3
IPluginV3OneCore = stub_tensorrt.IPluginV3OneCore
IPluginV3OneBuild = stub_tensorrt.IPluginV3OneBuild
IPluginV3OneRuntime = stub_tensorrt.IPluginV3OneRuntime
IPluginCreatorV3One = stub_tensorrt.IPluginCreatorV3One

_ONNX = {
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.INT64: DataType.INT64,
}


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class LayerType(IntEnum):
    PLUGIN_V3 = 46
    ATTENTION_INPUT = 52


class ILayer:
    """As the bindings give it: an attention's part is seen through its subclass alone."""

    def __init__(self, type: LayerType) -> None:
        self.type = type
        self._attention = SimpleNamespace(decomposable=False)


class IAttentionInputLayer(ILayer):
    @property
    def attention(self) -> Any:
        return self._attention


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class PreviewFeature(IntEnum):
    PROFILE_SHARING_0806 = 0
    ALIASED_PLUGIN_IO_10_03 = 1


class ILogger:
    def __init__(self) -> None: ...


class IProgressMonitor:
    def __init__(self) -> None: ...


def get_plugin_registry() -> Any:
    return _registry


def _fails(how: str) -> bool:
    return os.environ.get("FAKE_TENSORRT") == how


class _Network:
    def __init__(self, flags: int) -> None:
        _record["strongly_typed"] = bool(flags >> NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1)
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.layers: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Any:
        return self.layers[index]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]


class OnnxParser:
    def __init__(self, network: _Network, logger: Any) -> None:
        self.network, self.logger = network, logger
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        if _fails("parse"):
            self.num_errors = 1
            return False
        # Plugins are there before parsing, or a parser would not find them.
        _record["plugins"] = [creator.name for creator in _registry.all_creators]
        graph = onnx.load(path, load_external_data=False).graph
        for values, tensors in (
            (graph.input, self.network.inputs),
            (graph.output, self.network.outputs),
        ):
            for value in values:
                shape = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
                dtype = _ONNX[value.type.tensor_type.elem_type]
                tensors.append(
                    SimpleNamespace(
                        name=value.name, dtype=dtype, shape=shape, is_shape_tensor=False
                    )
                )
        for node in graph.node:
            native = node.op_type == "Attention"
            kind = LayerType.ATTENTION_INPUT if native else LayerType.PLUGIN_V3
            self.network.layers.append(ILayer(kind))
        return True

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(
            node_name=lambda: "/model/Softcap", desc=lambda: "no importer\nregistered for op"
        )


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *ranges: Any) -> None:
        self.shapes[name] = [list(shape) for shape in ranges]


class _Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + TIMINGS


class _Config:
    progress_monitor: Any = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        _record["pools"][pool.name] = size

    def set_preview_feature(self, feature: PreviewFeature, on: bool) -> None:
        _record["previews"] += [feature.name] if on else []

    def add_optimization_profile(self, profile: _Profile) -> int:
        if _fails("profile"):
            return -1
        _record["profiles"].append(profile.shapes)
        return len(_record["profiles"]) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return _Cache(bytes(content))

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if _fails("other_cache") and cache.content:
            return False
        _record["timing_cache"] = cache.content.decode()
        return True


class Builder:
    def __new__(cls, logger: Any) -> Any:
        if _fails("no_builder"):
            logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return super().__new__(cls)

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        assert monitor.step_complete("Building engine", 0)
        # What a library prints must not be taken for a reply.
        print("printed by a library", flush=True)
        os.write(1, b'{"kind": "finished"}\n')
        if os.environ.get("FAKE_TENSORRT_WAITS"):
            time.sleep(float(os.environ["FAKE_TENSORRT_WAITS"]))
        if _fails("abort"):
            os.write(2, b"terminate called without an active exception\n")
            os.abort()
        if _fails("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if _fails("build"):
            self.logger.log(SimpleNamespace(name="ERROR"), "Could not find any implementation")
            return None
        monitor.phase_finish("Building engine")
        attention = [layer.attention for layer in network.layers if hasattr(layer, "attention")]
        _record["decomposable"] = [each.decomposable for each in attention]
        Path(os.environ["FAKE_TENSORRT_RECORD"]).write_text(json.dumps(_record))
        return PLAN
