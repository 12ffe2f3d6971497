"""transformers' model of a checkpoint on the meta device: its modules and code without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from awq_edge.errors import ModelError
from awq_edge.model.checkpoint import Checkpoint

Read = Callable[[str], torch.Tensor]


class MetaModel:
    """The model, with weights by their names on disk where they are needed for a while.

    module: transformers' class with its output layer. What is computed from the configuration and
    not loaded (rotary frequencies, position numbers) has its values, on the device.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Raises ModelError when transformers cannot build the model. dtype: of its products."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        self._path = checkpoint.path
        arch = checkpoint.decoder.architecture
        self._vision = arch.vision
        kind = AutoModelForCausalLM if self._vision is None else AutoModelForImageTextToText
        try:
            config = AutoConfig.from_pretrained(str(checkpoint.path))
            with torch.device("meta"):
                model = kind.from_config(
                    config,
                    dtype=dtype,
                    # sdpa has no soft cap, and transformers refuses it for models that have one.
                    attn_implementation="sdpa" if arch.attention_softcap is None else "eager",
                )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{checkpoint.path}: transformers cannot build the model: {error}"
            ) from None
        self.module: Any = model.eval()
        compute_buffers(self.module, self.module, device)
        self._exact_names: dict[str, str] = {}
        if self._vision is not None:
            for name, _ in self.module.named_parameters():
                self._exact_names[self._vision.without_level(name)] = name

    def submodule(self, name: str) -> Any:
        """A module by its name on disk."""
        return self.module.get_submodule(self._in_memory(name))

    @contextmanager
    def loaded(self, names: Sequence[str], read: Read) -> Iterator[None]:
        """The model with these weights, by name on disk; freed at the end.

        Raises ModelError for a weight that the model lacks or has in another shape, and where only
        some of a vision tower's weights are there.
        """
        placed: list[str] = []
        try:
            for name in names:
                placed.append(self._place(name, read(name)))
            self._require_whole_parts(names)
            yield
        finally:
            for name in placed:
                weight = self.module.get_parameter(name)
                self._replace(name, torch.empty_like(weight, device="meta"))

    def _place(self, name: str, weight: torch.Tensor) -> str:
        """Set one parameter. Returns its name in memory."""
        in_memory = self._in_memory(name)
        try:
            wanted = tuple(self.module.get_parameter(in_memory).shape)
        except AttributeError:
            raise ModelError(
                f"{self._path}: unexpected weight '{name}' for transformers' class "
                f"{type(self.module).__name__}"
            ) from None
        if tuple(weight.shape) != wanted:
            raise ModelError(
                f"{self._path}: weight '{name}' has shape {list(weight.shape)}, config.json "
                f"implies {list(wanted)}"
            )
        self._replace(in_memory, weight)
        return in_memory

    def _replace(self, in_memory: str, weight: torch.Tensor) -> None:
        module, _, attribute = in_memory.rpartition(".")
        parameter = torch.nn.Parameter(weight, requires_grad=False)
        setattr(self.module.get_submodule(module), attribute, parameter)

    def _require_whole_parts(self, names: Sequence[str]) -> None:
        for part in () if self._vision is None else self._vision.parts:
            if not any(name.startswith(f"{part}.") for name in names):
                continue
            parameters = self.submodule(part).named_parameters()
            missing = [name for name, parameter in parameters if parameter.is_meta]
            if missing:
                raise ModelError(
                    f"{self._path}: weights of '{part}' are missing: {', '.join(missing[:5])}"
                    f"{' ...' if len(missing) > 5 else ''}"
                )

    def _in_memory(self, name: str) -> str:
        """A name on disk as transformers' class has it."""
        if self._vision is None:
            return name
        in_memory = self._vision.name_in_memory(name)
        if not self._vision.keeps(name):
            return in_memory
        return self._exact_names.get(self._vision.without_level(in_memory), in_memory)


def compute_buffers(module: Any, owner: Any, device: torch.device) -> None:
    """Give the buffers of a module on the meta device, and of all below it, their values.

    owner: the transformers model that the module belongs to; it knows how they are computed.
    """
    owner = module if hasattr(module, "_init_weights") else owner
    empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
    for name in empty:
        values = torch.empty_like(getattr(module, name), device=device)
        module.register_buffer(name, values, persistent=False)
    if empty:
        with torch.no_grad():
            owner._init_weights(module)
    for child in module.children():
        compute_buffers(child, owner, device)
