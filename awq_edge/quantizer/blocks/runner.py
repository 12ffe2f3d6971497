"""The decoder's blocks, one in memory at a time, run by transformers' own classes.

The model is built on the meta device. Its own forward pass runs once with blocks that only note
their arguments, which gives the embedded tokens and what each block needs beside them (rotary
tables, masks), whatever the architecture. Of a vision-language model, that pass takes the images
too, with the weights of its vision tower loaded until it is done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from awq_edge.errors import ModelError
from awq_edge.model.archs import Decoder
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.process.memory_errors import memory_error
from awq_edge.quantizer.blocks.experts import module_name, separate_experts
from awq_edge.quantizer.blocks.meta_model import MetaModel
from awq_edge.quantizer.blocks.weights import read_finite
from awq_edge.quantizer.calibration.text import ImageInputs
from awq_edge.quantizer.host_memory import return_free_memory

Tensors = dict[str, torch.Tensor]


class _AllSeen(Exception):
    """The forward pass has reached the last block."""


class BlockRunner:
    """Runs single blocks of a checkpoint on calibration tokens, in float32, or the whole model."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Build the model without its weights. Raises ModelError when transformers cannot.

        dtype: of the whole model.
        """
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype
        decoder = checkpoint.decoder
        self._model = MetaModel(checkpoint, device, dtype)
        self._layers: Any = self._model.submodule(decoder.architecture.layers)
        for layer, module in enumerate(self._layers):
            if decoder.has_experts(layer):
                separate_experts(decoder, module)
        # By batch and layer.
        self._arguments: list[list[dict[str, Any]]] = []

    def embed(
        self, ids: torch.Tensor, batch: int, images: Sequence[ImageInputs | None] = ()
    ) -> torch.Tensor:
        """The input of the first block: float32 [samples, length, hidden], on the CPU.

        ids: int64 [samples, length]. batch: samples that are run at a time. images: of each sample,
        or none at all, see `CalibrationSet`.
        Raises ModelError naming weights of the vision tower that are missing or unexpected, or with
        transformers' own words where images and tokens do not fit together.
        """
        names = list(self._checkpoint.decoder.input_shapes())
        if any(image is not None for image in images):
            names += self._checkpoint.kept_names
        self._arguments = []
        with self._model.loaded(names, self._read):
            by_size: dict[int, list[dict[str, Any]]] = {}
            whole = torch.empty(0)
            for start in range(0, len(ids), batch):
                part = ids[start : start + batch].to(self._device)
                inputs = self._image_inputs(part, images[start : start + batch])
                hidden, arguments = self._first_inputs(part, inputs)
                # Those of text are the same whatever the text: kept once.
                if not inputs:
                    arguments = by_size.setdefault(len(part), arguments)
                self._arguments.append(arguments)
                if start == 0:  # filled in place: these states are as large as several blocks
                    whole = torch.empty(len(ids), *hidden.shape[1:])
                whole[start : start + batch] = hidden
        return_free_memory()
        return whole

    def _image_inputs(
        self, ids: torch.Tensor, images: Sequence[ImageInputs | None]
    ) -> dict[str, torch.Tensor]:
        """Arguments of the forward pass beside the ids of a batch; none where it has no image."""
        given = [image for image in images if image is not None]
        if not given:
            return {}
        inputs = {
            key: torch.cat([torch.from_numpy(image[key]) for image in given]).to(self._device)
            for key in given[0]
        }
        decoder = self._checkpoint.decoder
        assert decoder.images is not None and decoder.architecture.vision is not None
        if decoder.architecture.vision.marks_images:
            inputs["mm_token_type_ids"] = (ids == decoder.images.image_id).int()
        return inputs

    def _read(self, name: str) -> torch.Tensor:
        return read_finite(self._checkpoint, name, self._device)

    @contextmanager
    def block(
        self, layer: int, tensors: Mapping[str, torch.Tensor], *, beside: bool = False
    ) -> Iterator[BlockOnDevice]:
        """A block with these weights, which must be all of its weights; freed at the end.

        beside: with a module of its own, so that the same block may then be there with other
        weights too.
        """
        module, decoder = self._layers[layer], self._checkpoint.decoder
        if beside:
            module = copy.deepcopy(module)
        state = {module_name(decoder, name): tensor for name, tensor in tensors.items()}
        module.load_state_dict(state, strict=True, assign=True)
        try:
            yield BlockOnDevice(module, decoder, self._device, self._arguments, layer)
        finally:
            module.to("meta")

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """transformers' model with the weights of the language model, on the device in the dtype;
        freed at the end. Raises ModelError naming a weight that is not finite."""
        decoder = self._checkpoint.decoder

        def read(name: str) -> torch.Tensor:
            return self._read(name).to(self._dtype)

        in_blocks = tuple(decoder.layer_prefix(layer) + "." for layer in range(decoder.num_layers))
        outside = [name for name in decoder.weight_shapes() if not name.startswith(in_blocks)]
        try:
            with self._model.loaded(outside, read):
                for layer, module in enumerate(self._layers):
                    prefix, names = decoder.layer_prefix(layer), decoder.block_shapes(layer)
                    state = {module_name(decoder, n): read(f"{prefix}.{n}") for n in names}
                    module.load_state_dict(state, strict=True, assign=True)
                model = self._model.module
                if decoder.tied_embeddings:
                    model.get_output_embeddings().weight = model.get_input_embeddings().weight
                yield model
        finally:
            for module in self._layers:
                module.to("meta")
            return_free_memory()

    @contextmanager
    def output_input(
        self, norm: Mapping[str, torch.Tensor]
    ) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """The road from the last block's output to the output layer's input: the final norm and a
        projection, each where the model has one; freed at the end.

        norm: weights of the final norm by full name. A function from float32 [batch, length,
        hidden] to [batch, length, in_features of the output layer], on the device.
        """
        decoder = self._checkpoint.decoder
        tensors = dict(norm)
        if decoder.has_projections:
            name = f"{decoder.architecture.project_out}.weight"
            tensors[name] = self._read(name)
        modules: dict[str, Tensors] = {}
        for full, tensor in tensors.items():
            name, _, parameter = full.rpartition(".")
            modules.setdefault(name, {})[parameter] = tensor
        chain = [self._model.submodule(name) for name in modules]
        for module, state in zip(chain, modules.values(), strict=True):
            module.load_state_dict(state, strict=True, assign=True)

        def run(hidden: torch.Tensor) -> torch.Tensor:
            with torch.set_grad_enabled(hidden.requires_grad):
                result = hidden.to(self._device)
                for module in chain:
                    result = module(result)
                return result

        try:
            yield run
        finally:
            for module in chain:
                module.to("meta")

    def _first_inputs(
        self, ids: torch.Tensor, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Run the model's forward up to the last block without running a block.

        Returns the first one's input, on the CPU, and the arguments of each.
        """
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
                self._model.module.base_model(input_ids=ids, use_cache=False, **inputs)
        except _AllSeen:
            pass
        except (ValueError, RuntimeError) as error:
            if not inputs or memory_error(error) is not None:
                raise
            text = " ".join(str(error).split())
            raise ModelError(
                f"{self._checkpoint.path}: transformers cannot run the model on calibration "
                f"images: {text}"
            ) from error
        finally:
            for layer, original in zip(self._layers, originals, strict=True):
                layer.forward = original
        return seen[0][0].cpu(), [arguments for _, arguments in seen]


class BlockOnDevice:
    """A block whose weights are loaded."""

    def __init__(
        self,
        module: torch.nn.Module,
        decoder: Decoder,
        device: torch.device,
        arguments: Sequence[list[dict[str, Any]]],
        layer: int,
    ) -> None:
        self._module = module
        self._decoder = decoder
        self._device = device
        self._arguments = arguments
        self._layer = layer

    def run(self, hidden: torch.Tensor, batch: int) -> torch.Tensor:
        """Output of a batch, on the device; with its graph where `hidden` requires a gradient.

        hidden: float32 [samples, length, hidden]. batch: its number among those of
        `BlockRunner.embed`.
        """
        arguments = self._arguments[batch][self._layer]
        with torch.set_grad_enabled(hidden.requires_grad):
            output = self._module(hidden.to(self._device), **arguments)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextmanager
    def outputs(self, names: Sequence[str]) -> Iterator[Tensors]:
        """The output of each linear by name, as it ran last; absent until it runs."""
        outputs: Tensors = {}

        def hook(name: str) -> Any:
            return lambda module, inputs, output: outputs.update({name: output})

        handles = [self._linear(name).register_forward_hook(hook(name)) for name in names]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def watched(self, watchers: Mapping[str, Callable[[torch.Tensor], None]]) -> Iterator[None]:
        """Call each watcher with the input of its linear, by name, as often as it runs."""

        def hook(watch: Callable[[torch.Tensor], None]) -> Any:
            return lambda module, inputs: watch(inputs[0])

        handles = []
        for name, watch in watchers.items():
            handles.append(self._linear(name).register_forward_pre_hook(hook(watch)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _linear(self, name: str) -> torch.nn.Module:
        return self._module.get_submodule(module_name(self._decoder, name))


def relative_change(before: torch.Tensor, after: torch.Tensor, ignored: int = 0) -> float:
    """||after - before|| / ||before||, the `ignored` tokens that changed most left out.

    before, after: float32 [..., channels].
    """
    change = (after - before).reshape(-1, before.shape[-1]).square().sum(dim=1)
    kept = change.sort().values[: len(change) - ignored]
    return float(kept.sum().sqrt() / before.norm().clamp(min=1e-30))
