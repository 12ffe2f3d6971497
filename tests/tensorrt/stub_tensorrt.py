"""The part of TensorRT's Python module that the plugin uses, for machines without TensorRT.

Numbers are those of NvInferRuntime.h.
"""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

__version__ = "11.1.0"


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9


class TensorFormat(IntEnum):
    LINEAR = 0
    CHW2 = 1


class PluginFieldType(IntEnum):
    FLOAT16 = 0
    FLOAT32 = 1
    FLOAT64 = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    CHAR = 6
    INT64 = 10


class _Interface:
    """A class of TensorRT's: to be initialized before use."""

    initialized = False


class IPluginV3(_Interface):
    def __init__(self) -> None:
        self.initialized = True


class IPluginV3OneCore(_Interface):
    def __init__(self) -> None: ...


class IPluginV3OneBuild(_Interface):
    def __init__(self) -> None: ...


class IPluginV3OneRuntime(_Interface):
    def __init__(self) -> None: ...


class IPluginCreatorV3One(_Interface):
    def __init__(self) -> None:
        self.initialized = True


class PluginField:
    def __init__(self, name: str, data: Any, type: PluginFieldType) -> None:
        self.name, self.data, self.type, self.size = name, data, type, len(data)


PluginFieldCollection = list


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    @property
    def all_creators(self) -> list[Any]:
        return list(self.creators.values())

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        added = key not in self.creators
        self.creators.setdefault(key, creator)
        return added


def make_module() -> ModuleType:
    """A module of its own registry, as a process of TensorRT's has one."""
    module = ModuleType("stub_tensorrt")
    module.__dict__.update(
        {name: value for name, value in globals().items() if not name.startswith("__")}
    )
    module.__dict__["__version__"] = __version__
    registry = Registry()
    module.__dict__["get_plugin_registry"] = lambda: registry
    return module


def described(dtype: int, smallest: list[int], largest: list[int], format: int = 0) -> Any:
    """A DynamicPluginTensorDesc."""
    desc = SimpleNamespace(type=DataType(dtype), dims=smallest, format=TensorFormat(format))
    return SimpleNamespace(desc=desc, min=smallest, max=largest)
