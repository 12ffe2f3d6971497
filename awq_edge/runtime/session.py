"""The protocol that every backend implements, and the bookkeeping that its sessions share.

A session executes one bundle for one sequence at a time. Its KV cache holds `context` positions, of
which the first `past_length` are filled:

    prefill(ids)   appends ids, gives the logits after the last one
    decode(id)     appends one id, gives the logits after it
    truncate(n)    forgets all but the first n positions (a chat that goes back)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from awq_edge.artifacts.directories import Bundle
from awq_edge.device.meter import DeviceMemory
from awq_edge.errors import ConfigError, ResourceError

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SessionOptions:
    """Options of opening a bundle. None means the backend's or the bundle's own choice.

    context: positions of the KV cache, at most the bundle's.
    threads: CPU threads that compute.
    observer: called while an engine is built first, with the part that is done and a word.
    """

    context: int | None = None
    threads: int | None = None
    observer: Callable[[float, str], None] | None = None


@dataclass(frozen=True)
class SessionInfo:
    """The libraries and the device that execute the model.

    versions: of the libraries, by name.
    device: in words.
    """

    backend: str
    device: str
    threads: int | None
    versions: dict[str, str]


@dataclass(frozen=True)
class SessionMemory:
    """Bytes that a session allocated for itself; None where the backend does not know them.

    workspace: activations and the scratch memory of kernels.
    device: bytes of the GPU that hold all of it; None where that is the process's own memory.
    measured: bytes in use on the whole GPU, where the backend measures them.
    """

    kv_cache: int
    weights: int | None = None
    workspace: int | None = None
    device: int | None = None
    measured: DeviceMemory | None = None

    @property
    def on_device(self) -> int | None:
        """Bytes taken of a device's own memory; None where it has none, or they are not known."""
        if self.device is None or self.weights is None or self.workspace is None:
            return None
        return self.kv_cache + self.weights + self.workspace


@dataclass(frozen=True)
class CacheCopy:
    """The filled part of a KV cache in the host's memory."""

    ids: tuple[int, ...]  # the tokens of its positions
    parts: Mapping[str, npt.NDArray[Any]]  # the backend's own arrays, by name

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


class Session(Protocol):
    """One loaded bundle. Not safe for use from several threads at once."""

    @property
    def info(self) -> SessionInfo: ...

    @property
    def memory(self) -> SessionMemory: ...

    @property
    def context(self) -> int:
        """Positions that the KV cache holds."""
        ...

    @property
    def prefill_chunk(self) -> int:
        """Tokens that one execution of a prefill takes at most."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def cached_ids(self) -> Sequence[int]:
        """The token ids whose keys and values the cache holds, in order."""
        ...

    @property
    def past_length(self) -> int:
        """Positions of the KV cache that are filled: len(cached_ids)."""
        ...

    def measure_bandwidth(self) -> float | None:
        """Bandwidth, in bytes/s, of the memory that decoding reads; None where it cannot be
        measured."""
        ...

    def prefill(self, ids: Sequence[int]) -> Float32:
        """Append one or more ids; logits after the last: float32 [vocab].

        The array belongs to the session: the next call may overwrite it. Raises ResourceError
        when the ids do not fit the context; the cache is then unchanged.
        """
        ...

    def decode(self, token_id: int) -> Float32:
        """Append one id; logits after it: float32 [vocab]. As prefill([token_id]), but faster."""
        ...

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Float32:
        """Append ids; logits at some of them: float32 [len(positions), vocab], a fresh array.

        positions: indices into `ids`, increasing. Only these are computed, so a long text costs no
            more memory than the rows asked for: call it with one part after the other.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def copy_cache(self) -> CacheCopy | None:
        """A copy of the KV cache for `restore_cache`; None where a backend cannot copy.

        Raises ResourceError or MemoryError where there is no memory for it.
        """
        ...

    def restore_cache(self, copy: CacheCopy) -> None:
        """Replace the KV cache with a copy made by this session."""
        ...

    def close(self) -> None:
        """Free weights and cache. A closed session refuses to run."""
        ...


class SessionBase:
    """Bookkeeping that sessions share: filled positions, room in the context, use as a context
    manager."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        manifest = bundle.manifest
        self._context = check_context(bundle, options.context)
        self._prefill_chunk = max(1, min(manifest.prefill_chunk, self._context))
        self._vocab_size = manifest.vocab_size
        self._ids: list[int] = []
        self._closed = False

    @property
    def context(self) -> int:
        return self._context

    @property
    def prefill_chunk(self) -> int:
        return self._prefill_chunk

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def cached_ids(self) -> Sequence[int]:
        return self._ids

    @property
    def past_length(self) -> int:
        return len(self._ids)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises ConfigError when there are fewer."""
        if not 0 <= length <= len(self._ids):
            raise ConfigError(
                f"the session holds {len(self._ids)} positions and cannot be cut to {length}"
            )
        del self._ids[length:]

    def reset(self) -> None:
        """Forget everything."""
        self._ids.clear()

    def copy_cache(self) -> CacheCopy | None:
        """See `Session`; a backend that can copy overrides both methods."""
        return None

    def restore_cache(self, copy: CacheCopy) -> None:
        """See `Session`."""
        raise ConfigError("this session makes no copies of its cache")

    def close(self) -> None:
        """A closed session refuses to run."""
        self._closed = True
        self._ids.clear()

    def __enter__(self) -> SessionBase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require(self, ids: Sequence[int]) -> None:
        """Raise ConfigError or ResourceError when these ids cannot be appended."""
        if self._closed:
            raise ConfigError("the session is closed; open the bundle again")
        if not ids:
            raise ConfigError("there are no token ids to run; give at least one")
        if len(self._ids) + len(ids) > self._context:
            raise ResourceError(
                f"{len(self._ids)} + {len(ids)} tokens do not fit the context of "
                f"{self._context}; shorten the prompt or export with a larger --context"
            )
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise ConfigError(
                f"token ids {min(ids)}..{max(ids)} are not all within the model's vocabulary of "
                f"{self._vocab_size}; tokenizer and model do not belong together"
            )


def check_context(bundle: Bundle, context: int | None) -> int:
    """The context to use. Raises ConfigError when it is not within the bundle's."""
    exported = bundle.manifest.context
    if context is None:
        return exported
    if context < 1:
        raise ConfigError(f"--context {context}: must be 1 or more")
    if context > exported:
        raise ConfigError(
            f"--context {context} is beyond the {exported} tokens that {bundle.path} was exported "
            f"with; export it again with --context {context}"
        )
    return context


def check_positions(positions: Sequence[int], count: int) -> npt.NDArray[np.int64]:
    """The positions as an array. Raises ConfigError unless they increase within 0..count-1."""
    wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= count or (np.diff(wanted) <= 0).any()):
        raise ConfigError(
            f"positions must be increasing and within 0..{count - 1} (there are {count} ids); they "
            f"run from {wanted[0]} to {wanted[-1]}"
        )
    return wanted
