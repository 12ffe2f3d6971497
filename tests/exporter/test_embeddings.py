"""Graphs that take embeddings, an image's among them, against transformers with the image."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from awq_edge.exporter.emit_onnxruntime import IR_VERSION
from awq_edge.exporter.graph import DecoderGraph, to_model
from awq_edge.exporter.lower_onnxruntime import emitter_of
from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from tests.arch_configs import AFTER_IMAGE, BEFORE_IMAGE, IMAGE_TOKEN

from .conftest import parity_recipe
from .models import MAX_POSITIONS, Reference, save_quantized, save_random_model
from .reference import evaluated_model
from .test_parity import TOLERANCE, relative_error

SPEC = GraphSpec(MAX_POSITIONS, 16, takes_embeddings=True)
# Patches of Qwen2-VL's image, rows and columns, of which a square of 2 x 2 becomes a token.
GRID = (4, 6)


def images_of(model_type: str) -> dict[str, Any]:
    """Arguments of transformers' class, and the number of tokens that the image is."""
    generator = torch.Generator().manual_seed(3)
    if model_type == "llava":  # 28 x 28 pixels, patches of 7
        return {"pixel_values": torch.randn(1, 3, 28, 28, generator=generator)}
    rows, columns = GRID
    patches = torch.randn(rows * columns, 3 * 2 * 4 * 4, generator=generator)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}


def prompt(model_type: str) -> list[int]:
    """Text, the image, text."""
    count = 16 if model_type == "llava" else GRID[0] * GRID[1] // 4
    return [20, 21, 22, BEFORE_IMAGE, *[IMAGE_TOKEN] * count, AFTER_IMAGE, 30, 31, 32, 33]


class WithImage(Reference):
    """What transformers makes of a prompt with an image: logits, and what goes into the decoder."""

    @torch.no_grad()
    def run(self, model_type: str, ids: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        seen: dict[str, Any] = {}
        inner: Any = self.model.get_submodule("model.language_model")

        def watch(_: Any, __: Any, given: dict[str, Any]) -> None:
            seen.update(given)

        handle = inner.register_forward_pre_hook(watch, with_kwargs=True)
        arguments = images_of(model_type)
        if model_type == "qwen2_vl":
            kinds = [int(token == IMAGE_TOKEN) for token in ids]
            arguments["mm_token_type_ids"] = torch.tensor([kinds], dtype=torch.int32)
        found = self.model(torch.tensor([ids]), use_cache=False, **arguments).logits[0]
        handle.remove()
        inputs = {"inputs_embeds": seen["inputs_embeds"].numpy()}
        if model_type == "qwen2_vl":
            inputs["position_ids"] = seen["position_ids"].numpy()
        return np.asarray(found.numpy()), inputs


def graph_of(path: Path, spec: GraphSpec = SPEC) -> DecoderGraph:
    return emitter_of(Checkpoint.open(path), spec, parity_recipe()).emit()


class OrtSession:
    """A graph in onnxruntime, its cache carried along."""

    def __init__(self, graph: DecoderGraph) -> None:
        model = evaluated_model(graph, IR_VERSION)
        self._session = ort.InferenceSession(model.SerializeToString())
        self._names = [port.name for port in self._session.get_outputs()]
        self._cache = {
            port.name: np.zeros((1, port.shape[1], MAX_POSITIONS, port.shape[3]), np.float32)
            for port in self._session.get_inputs()
            if port.name.startswith("past.")
        }

    def call(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        found = dict(zip(self._names, self._session.run(None, feeds | self._cache), strict=True))
        self._cache = {name: found[name.replace("past", "present")] for name in self._cache}
        return np.asarray(found["logits"])


def chunk(inputs: dict[str, np.ndarray], begin: int, end: int) -> dict[str, np.ndarray]:
    """The inputs of one call; tokens are on the last axis but of embeddings."""
    feeds = {
        name: value[:, begin:end] if name == "inputs_embeds" else value[..., begin:end]
        for name, value in inputs.items()
    }
    positions = np.arange(end - begin)[None]
    return feeds | {"past_length": np.array([begin]), "logits_positions": positions}


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int4"])
@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl"])
def test_an_image_among_the_tokens(model_type: str, quantized: bool, tmp_path: Path) -> None:
    """Prefill in chunks of which one ends within the image, then token by token."""
    path = save_random_model(tmp_path / "model", model_type)
    if quantized:
        path = save_quantized(path, tmp_path / "checkpoint")
    ids = prompt(model_type)
    expected, inputs = WithImage(path).run(model_type, ids)
    if model_type == "qwen2_vl":  # the image's tokens are placed by row and column
        assert (inputs["position_ids"][0] != inputs["position_ids"][2]).any()
    graph = graph_of(path)
    assert "input_ids" not in {tensor.name for tensor in graph.graph.inputs}
    cuts, session = [0, 7, len(ids) - 2, len(ids) - 1, len(ids)], OrtSession(graph)
    found = [session.call(chunk(inputs, begin, end))[0] for begin, end in pairwise(cuts)]
    assert relative_error(np.concatenate(found), expected) < TOLERANCE


@pytest.mark.parametrize("model_type", ["llava", "gemma2"])
def test_embeddings_of_token_ids(model_type: str, tmp_path: Path) -> None:
    """What the decoder is given for text: scaled where the model scales it."""
    path = save_random_model(tmp_path / "model", model_type)
    graph = emitter_of(Checkpoint.open(path), SPEC, parity_recipe()).emit_embedding()
    session = ort.InferenceSession(evaluated_model(graph, IR_VERSION).SerializeToString())
    ids = [[20, 21, 30], [22, 33, 44]]
    (found,) = session.run(["inputs_embeds"], {"input_ids": np.array(ids)})
    expected = Reference(path).model.get_input_embeddings()(torch.tensor(ids))
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-6)


def test_a_graph_of_token_ids_is_as_it_was(tmp_path: Path) -> None:
    """Text has one position on every axis: no rotation by token, the usual tables."""
    path = save_random_model(tmp_path / "model", "qwen2_vl")
    spec = GraphSpec(MAX_POSITIONS, 16)
    model = to_model(graph_of(path, spec), IR_VERSION)
    assert "position_ids" not in {value.name for value in model.graph.input}
    assert "RotaryEmbedding" not in {node.op_type for node in model.graph.node}
