"""Profiles: decode and prefill meet where the kernels change; every shape is in its range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.artifacts.directories import Bundle, TensorPort
from awq_edge.errors import ArtifactError
from awq_edge.kernels.interface import DECODE_ROWS
from awq_edge.tensorrt.engines import profiles_of


def test_decode_and_prefill_of_a_chunk(bundle: Bundle) -> None:
    decode, prefill = profiles_of(bundle.manifest)
    assert (decode.name, decode.min_tokens, decode.max_tokens) == ("decode", 1, DECODE_ROWS)
    assert (prefill.name, prefill.min_tokens, prefill.max_tokens) == ("prefill", 17, 64)
    ids = decode.shapes["input_ids"]
    assert (ids.min, ids.opt, ids.max) == ((1, 1), (1, 1), (1, 16))
    ids = prefill.shapes["input_ids"]
    assert (ids.min, ids.opt, ids.max) == ((1, 17), (1, 64), (1, 64))
    rows = prefill.shapes["logits_positions"]
    assert (rows.min, rows.opt, rows.max) == ((1, 1), (1, 1), (1, 64))
    cache = decode.shapes["past.0.key"]
    assert cache.min == cache.max == (1, 2, bundle.manifest.context, 32)
    assert set(decode.shapes) == {port.name for port in bundle.manifest.inputs}


@given(chunk=st.integers(1, 4096), context=st.integers(1, 4096))
def test_every_length_up_to_a_chunk_has_one_profile(chunk: int, context: int) -> None:
    manifest = _manifest(chunk, context)
    profiles = profiles_of(manifest)
    for tokens in range(1, min(chunk, context) + 1):
        fitting = [p for p in profiles if p.min_tokens <= tokens <= p.max_tokens]
        assert len(fitting) == 1, tokens
    for profile in profiles:
        for shapes in profile.shapes.values():
            assert shapes.min <= shapes.opt <= shapes.max
        assert 1 <= profile.max_rows <= profile.max_tokens


def test_unknown_dimension_is_refused(bundle: Bundle) -> None:
    port = TensorPort(name="image", dtype="float16", shape=("batch", "patches"))
    manifest = bundle.manifest.model_copy(update={"inputs": (port,)})
    with pytest.raises(ArtifactError, match="input image of the graph has a dimension 'patches'"):
        profiles_of(manifest)


def _manifest(chunk: int, context: int):  # type: ignore[no-untyped-def]
    from types import SimpleNamespace

    ports = (
        TensorPort(name="input_ids", dtype="int64", shape=("batch", "sequence")),
        TensorPort(name="logits_positions", dtype="int64", shape=("batch", "positions")),
        TensorPort(name="past.0.key", dtype="float16", shape=("batch", 2, "context", 32)),
    )
    return SimpleNamespace(prefill_chunk=chunk, context=context, inputs=ports)
