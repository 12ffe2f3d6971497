"""The bandwidth of a GPU's memory: the roofline of decoding."""

from __future__ import annotations

import statistics

from awq_edge.device.buffers import DeviceBuffer, Owned
from awq_edge.device.layer import DeviceLayer
from awq_edge.errors import ResourceError

# The size of one copy: beyond every cache, and little enough to fit beside a model.
_COPY_BYTES = 256 << 20
_COPIES = 11


def measure_copy_bandwidth(layer: DeviceLayer, stream: int) -> float | None:
    """Bytes/s that a copy within the GPU's memory reads and writes, the median of several copies;
    None where there is no room to measure it."""
    owned = Owned()
    try:
        source, target = (DeviceBuffer(layer, _COPY_BYTES, owned) for _ in range(2))
        begin, end = (_event(layer, owned) for _ in range(2))
        seconds = []
        for _ in range(_COPIES):
            layer.record_event(begin, stream)
            layer.copy_on_device(target.address, source.address, _COPY_BYTES, stream)
            layer.record_event(end, stream)
            seconds.append(layer.elapsed_seconds(begin, end))
    except ResourceError:
        owned.release_quietly()
        return None
    except BaseException:
        owned.release_quietly()
        raise
    owned.release()
    return 2 * _COPY_BYTES / statistics.median(seconds)


def _event(layer: DeviceLayer, owned: Owned) -> int:
    event = layer.create_event()
    owned.add(lambda: layer.destroy_event(event))
    return event
