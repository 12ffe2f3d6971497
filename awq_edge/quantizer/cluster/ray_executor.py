"""The work on blocks as tasks of a Ray cluster.

Where later blocks see unquantized inputs, a block is a task and several are in work at a time:

    driver   forward 0 │ forward 1 │ forward 2 │ ...
    worker A           │ block 0 ───────────── │ block 2
    worker B                       │ block 1 ─────────────

Where they see quantized ones, a block must be finished before the next one runs: its searches are a
task for each scale group, its rounding a task for each input, with the linears that read it (an
expert's two, or q, k and v: GPTQ takes their rows through the columns together).

A task gets all that it needs with it, and Ray gives it to another worker when its own dies. The
objects that it reads are held by the driver, on the driver's machine, until its outcome is here.
"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from awq_edge._version import __version__
from awq_edge.device.torch_device import device_name
from awq_edge.errors import AwqEdgeError, ResourceError, RuntimeUnavailableError
from awq_edge.quantizer.cluster.options import ExecutorOptions
from awq_edge.quantizer.cluster.ray_cluster import blocks_that_fit, connect, count_slots
from awq_edge.quantizer.cluster.shipping import Wire, pack, unpack, wire

Result = TypeVar("Result")

_RETRIES = 3  # of a task whose worker died
_CPU = torch.device("cpu")

# Tensors that are in the object store, with their references: by identity, which is why they are
# held, and version, because a tensor may be changed in place between two calls.
_Sent = dict[tuple[int, int], tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class _Begun:
    """A Ray task. objects: references of what it reads, which exists for as long as they do."""

    title: str
    ref: Any
    objects: list[Any]


@dataclass(frozen=True)
class Surroundings:
    """Facts that a worker shares with the driver, so that its bits are the driver's.

    facts: versions and device, by name. threads: torch's. matmul_precision: torch's, for float32.
    device_type: "cpu" or "cuda".
    """

    facts: dict[str, str]
    threads: int
    matmul_precision: str
    device_type: str

    @staticmethod
    def here(device: torch.device) -> Surroundings:
        """The facts of this process, which computes on `device`."""
        return Surroundings(
            facts={
                "awq-edge": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "Python": ".".join(platform.python_version_tuple()[:2]),
                "device": device_name(device),
            },
            threads=torch.get_num_threads(),
            matmul_precision=torch.get_float32_matmul_precision(),
            device_type=device.type,
        )

    def apply(self) -> torch.device:
        """Make this process, a worker, like the driver; the device that its tasks compute on.

        Raises RuntimeUnavailableError naming the facts that differ.
        """
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul_precision)
        # Ray lets a worker see only the GPUs that its task was given.
        if self.device_type == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailableError(
                f"the Ray worker on {platform.node()}: torch {torch.__version__} sees no GPU; "
                "install a torch that does, or use --device cpu"
            )
        device = torch.device("cuda:0" if self.device_type == "cuda" else "cpu")
        own = Surroundings.here(device).facts
        differing = [
            f"{name} {own[name]} (the driver: {wanted})"
            for name, wanted in self.facts.items()
            if own[name] != wanted
        ]
        if differing:
            raise RuntimeUnavailableError(
                f"the Ray worker on {platform.node()} has {', '.join(differing)}; blocks would "
                "depend on where they were made. Use machines of one kind, with the same "
                "awq-edge[host,ray] on each"
            )
        return device


def run_shipped(
    surroundings: dict[str, Any], blob: bytes, *wires: Wire
) -> tuple[bytes, list[Wire]]:
    """The task: call a packed function with its packed arguments; the packed result.

    surroundings: the driver's, as a dictionary, which every version of awq-edge can read. An error
    that is the user's comes back as the result: it is no failure of the worker.
    """
    driver = Surroundings(**surroundings)
    try:
        device = driver.apply()
        function, arguments = unpack(blob, wires, device)
        result = function(*arguments)
    except AwqEdgeError as error:
        result = error
    packed = pack(result)
    shipped = packed.blob, [wire(tensor) for tensor in packed.tensors]
    if driver.device_type == "cuda":
        del result, packed
        torch.cuda.empty_cache()  # the worker stays, and others may want the memory
    return shipped


class RayExecutor:
    """Tasks on the CPUs or, where the run's device is a GPU, on the GPUs of a cluster."""

    def __init__(self, options: ExecutorOptions, device: torch.device, block_bytes: int) -> None:
        """Connect, or start a cluster. block_bytes: weights and statistics of a block.

        Raises RuntimeUnavailableError where there is no cluster, or no machine in it for a task.
        """
        self._device = device
        self._surroundings = Surroundings.here(device)
        self._running: set[Any] = set()
        self._cluster = connect(options.ray_address)
        try:
            import ray

            is_cuda = device.type == "cuda"
            cpus = 1 if is_cuda else self._surroundings.threads
            gpus = options.ray_gpus if is_cuda else 0
            slots = count_slots({"CPU": cpus, "GPU": gpus} if is_cuda else {"CPU": cpus})
            # One more than can be in work: its forward pass runs while the others are.
            fitting = min(slots + 1, blocks_that_fit(block_bytes))
            self._width = fitting if options.ray_blocks is None else options.ray_blocks
            self._task = ray.remote(
                num_cpus=cpus,
                num_gpus=gpus,
                max_retries=_RETRIES,
                max_calls=0,  # Ray's default ends a GPU worker, with its CUDA context, every time
                scheduling_strategy="SPREAD",
            )(run_shipped)
        except BaseException:
            self._cluster.close()
            raise

    @property
    def width(self) -> int:
        """Blocks that are in work at a time."""
        return self._width

    def blocks(
        self, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]:
        """Calls for whole blocks, `width` of them in work; results on the CPU, in order."""
        begun: deque[_Begun] = deque()
        for each in arguments:
            begun.append(self._begin(function, each, {}))
            del each  # what it holds is in the object store now
            if len(begun) >= self._width:
                yield self._result(begun.popleft(), _CPU)
        while begun:
            yield self._result(begun.popleft(), _CPU)

    def parts(
        self, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]:
        """Calls for the parts of one block, all at once; results on the run's device, in order."""
        sent: _Sent = {}
        begun = [self._begin(function, each, sent) for each in arguments]
        return (self._result(each, self._device) for each in begun)

    def close(self) -> None:
        """Leave the cluster; end it, if it was started for this run."""
        import ray

        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()
        self._cluster.close()

    def _begin(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], sent: _Sent
    ) -> _Begun:
        """Submit a task. arguments: the first is a `BlockTask`."""
        import ray

        packed = pack((function, arguments))
        objects = []
        for tensor in packed.tensors:
            key = id(tensor), tensor._version
            if key not in sent:
                sent[key] = tensor, ray.put(wire(tensor))
            objects.append(sent[key][1])
        ref = self._task.remote(asdict(self._surroundings), packed.blob, *objects)
        self._running.add(ref)
        return _Begun(arguments[0].title, ref, objects)

    def _result(self, begun: _Begun, device: torch.device) -> Any:
        """Wait for a task's result; raise what it raised."""
        import ray

        try:
            blob, wires = ray.get(begun.ref)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"{begun.title} was lost and Ray gave up repeating it ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}); workers often die of too little memory. "
                "Run the same command again: finished blocks are kept"
            ) from None
        finally:
            self._running.discard(begun.ref)
            begun.objects.clear()
        result = unpack(blob, wires, device)
        if isinstance(result, AwqEdgeError):
            raise result
        return result


def _cause(error: Any) -> BaseException:
    """The error of a task, or why its function could not be called."""
    cause = error.cause
    if isinstance(cause, RuntimeError) and "failed to import on the worker" in str(cause):
        lines = str(cause).strip().splitlines()
        return RuntimeUnavailableError(
            f"a Ray worker cannot run awq-edge {__version__}: {lines[-1]}; install the same "
            "awq-edge[host,ray] on every machine of the cluster"
        )
    return cause if isinstance(cause, BaseException) else RuntimeError(str(error))
