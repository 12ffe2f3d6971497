"""libnvidia-ml as ctypes would show it, with one GPU whose figures are attributes."""

from __future__ import annotations

from typing import Any

NOT_SUPPORTED = 3
MISSING = "missing"  # the library lacks the function


class FakeNvml:
    """figures: function -> value, MISSING, or None for "not supported". calls: in order."""

    def __init__(self, figures: dict[str, Any] | None = None, *, init: int = 0, gpus: int = 1):
        self._figures = figures or {}
        self._init = init
        self._gpus = gpus
        self.calls: list[str] = []

    def nvmlInit_v2(self) -> int:
        return self._init

    def nvmlShutdown(self) -> int:
        self.calls.append("nvmlShutdown")
        return 0

    def nvmlErrorString(self, code: int) -> bytes:
        return {9: b"Driver Not Loaded", 2: b"Invalid Argument"}.get(code, b"")

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        if index >= self._gpus:
            return 2
        handle._obj.value = 1234 + index
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: int) -> int:
        assert handle.value == 1234
        name.value = b"Fake GPU"
        return 0

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("nvml") or self._figures.get(function) == MISSING:
            raise AttributeError(function)

        def call(handle: Any, *arguments: Any) -> int:
            assert handle.value == 1234
            self.calls.append(function)
            value = self._figures.get(function)
            if isinstance(value, dict) and len(arguments) == 2:  # by kind of clock
                value = value.get(arguments[0])
            if value is None:
                return NOT_SUPPORTED
            target = arguments[-1]._obj
            if isinstance(value, dict):
                for name, part in value.items():
                    setattr(target, name, part)
            else:
                target.value = value
            return 0

        return call
