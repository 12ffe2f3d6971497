"""The decoder's blocks, one in memory at a time, run by transformers' own classes.

The model is built on the meta device. Its own forward pass runs once with blocks that only note
their arguments, which gives the embedded tokens and what each block needs beside them (rotary
tables, masks), whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from awq_edge.archs import Decoder
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ModelError
from awq_edge.quantizer.experts import module_name, separate_experts
from awq_edge.torch_tensors import read_float32

Tensors = dict[str, torch.Tensor]


class _AllSeen(Exception):
    """The forward pass has reached the last block."""


class BlockRunner:
    """Runs single blocks of a checkpoint on calibration tokens. Computes in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Build the model without its weights. Raises ModelError when transformers cannot."""
        from transformers import AutoConfig, AutoModelForCausalLM

        self._checkpoint = checkpoint
        self._device = device
        decoder = checkpoint.decoder
        # sdpa has no soft cap, and transformers refuses it for models that can have one.
        has_softcap = decoder.architecture.attention_softcap is not None
        try:
            config = AutoConfig.from_pretrained(str(checkpoint.path))
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(
                    config,
                    dtype=torch.float32,
                    attn_implementation="eager" if has_softcap else "sdpa",
                )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{checkpoint.path}: transformers cannot build the model: {error}"
            ) from None
        self._model = model.eval()
        self._base = model.base_model
        self._layers: Any = model.get_submodule(decoder.architecture.layers)
        for layer, module in enumerate(self._layers):
            if decoder.has_experts(layer):
                separate_experts(decoder, module)
        # What is computed from the configuration, not loaded, has no values on the meta device.
        if hasattr(self._base, "rotary_emb"):
            self._base.rotary_emb = type(self._base.rotary_emb)(config).to(device)
        if decoder.architecture.scaled_embedding:
            embedding = self._base.get_input_embeddings()
            embedding.embed_scale = torch.tensor(decoder.embedding_scale, device=device)
        self._arguments: dict[int, list[dict[str, Any]]] = {}

    def embed(self, ids: torch.Tensor, batch: int) -> torch.Tensor:
        """The input of the first block: float32 [samples, length, hidden], on the CPU.

        ids: int64 [samples, length]. batch: samples that are run at a time.
        """
        names = list(self._checkpoint.decoder.input_shapes())
        for name in names:
            self._set_weight(name, self._read(name))
        pieces = [self._first_inputs(part.to(self._device)) for part in torch.split(ids, batch)]
        for name in names:
            self._set_weight(name, torch.empty(0, device="meta"))
        return torch.cat(pieces)

    def _set_weight(self, name: str, weight: torch.Tensor) -> None:
        module = self._model.get_submodule(name.removesuffix(".weight"))
        module.weight = torch.nn.Parameter(weight, requires_grad=False)

    def load(self, layer: int) -> Tensors:
        """The weights of a block by name relative to it: float32, on the device.

        Raises ModelError naming a weight that is not finite.
        """
        decoder = self._checkpoint.decoder
        prefix = decoder.layer_prefix(layer)
        return {name: self._read(f"{prefix}.{name}") for name in decoder.block_shapes(layer)}

    def _read(self, name: str) -> torch.Tensor:
        tensor = read_float32(self._checkpoint.files, name, self._device)
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{self._checkpoint.path}: '{name}' has NaN or inf")
        return tensor

    @contextmanager
    def block(self, layer: int, tensors: Mapping[str, torch.Tensor]) -> Iterator[BlockOnDevice]:
        """A block with these weights, which must be all of its weights; freed at the end."""
        module, decoder = self._layers[layer], self._checkpoint.decoder
        state = {module_name(decoder, name): tensor for name, tensor in tensors.items()}
        module.load_state_dict(state, strict=True, assign=True)
        try:
            yield BlockOnDevice(module, decoder, self._device, self._arguments, layer)
        finally:
            module.to("meta")

    def _first_inputs(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the model's forward up to the last block without running a block."""
        seen: list[tuple[torch.Tensor, dict[str, Any]]] = []

        def note(hidden: torch.Tensor, *rest: Any, **arguments: Any) -> torch.Tensor:
            assert not rest, "a block was given more than one positional argument"
            seen.append((hidden, arguments))
            if len(seen) == len(self._layers):
                raise _AllSeen
            return hidden

        originals = [layer.forward for layer in self._layers]
        try:
            for layer in self._layers:
                layer.forward = note
            with torch.no_grad():
                self._base(input_ids=ids, use_cache=False)
        except _AllSeen:
            pass
        finally:
            for layer, original in zip(self._layers, originals, strict=True):
                layer.forward = original
        self._arguments[len(ids)] = [arguments for _, arguments in seen]
        return seen[0][0].cpu()


class BlockOnDevice:
    """A block whose weights are loaded."""

    def __init__(
        self,
        module: torch.nn.Module,
        decoder: Decoder,
        device: torch.device,
        arguments: Mapping[int, list[dict[str, Any]]],
        layer: int,
    ) -> None:
        self._module = module
        self._decoder = decoder
        self._device = device
        self._arguments = arguments
        self._layer = layer

    @torch.no_grad()
    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output of some samples, on the device. hidden: float32 [batch, length, hidden]."""
        arguments = self._arguments[len(hidden)][self._layer]
        output = self._module(hidden.to(self._device), **arguments)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextmanager
    def watched(self, watchers: Mapping[str, Callable[[torch.Tensor], None]]) -> Iterator[None]:
        """Call each watcher with the input of its linear, by name, as often as it runs."""

        def hook(watch: Callable[[torch.Tensor], None]) -> Any:
            return lambda module, inputs: watch(inputs[0])

        handles = []
        for name, watch in watchers.items():
            module = self._module.get_submodule(module_name(self._decoder, name))
            handles.append(module.register_forward_pre_hook(hook(watch)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def relative_change(before: torch.Tensor, after: torch.Tensor, ignored: int = 0) -> float:
    """||after - before|| / ||before||, the `ignored` tokens that changed most left out.

    before, after: float32 [..., channels].
    """
    change = (after - before).reshape(-1, before.shape[-1]).square().sum(dim=1)
    kept = change.sort().values[: len(change) - ignored]
    return float(kept.sum().sqrt() / before.norm().clamp(min=1e-30))
