"""Logits of a bundle's session against transformers in float32 on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ConfigError, ResourceError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import Session, SessionOptions
from awq_edge.units import release

from .conftest import Export, parity_recipe
from .models import MAX_POSITIONS, Reference, random_ids, save_quantized, save_random_model

# Of the largest logit. Both sides compute in float32 and add in different orders: 1.5e-5 was the
# largest seen, with weights of 2 bits. A wrong position, window or zero point is above 1e-2.
TOLERANCE = 2e-5
# 16-bit activations: 2**-11 a rounding, a dozen roundings a layer.
HALF_TOLERANCE = 1e-2
# int8 activations inside MatMulNBits (accuracy level 4): 6e-3 on single linears, at most 6.3e-2 on
# these models of 64 channels (three of four experts).
LEVEL_4_TOLERANCE = 8e-2


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_session(session: Session, expected: np.ndarray, ids: list[int], limit: float) -> None:
    """Everything a session does, against the logits of one forward pass over all ids."""

    def check(found: np.ndarray, position: int, what: str) -> None:
        error = relative_error(found, expected[position])
        assert error < limit, f"{what}: {error:.2e} at position {position}"

    every = session.logits(ids, range(len(ids)))
    assert relative_error(every, expected) < limit
    session.reset()
    check(session.prefill(ids[:50]), 49, "prefill in two chunks")
    for position in (50, 51):
        check(session.decode(ids[position]), position, "decode")
    check(session.prefill(ids[52:80]), 79, "prefill on top of a cache")
    session.truncate(20)
    check(session.prefill(ids[20:21]), 20, "one token after truncate")
    check(session.prefill(ids[21:33]), 32, "prefill after truncate")
    session.reset()
    check(session.prefill(ids[:1]), 0, "a single token")
    check(session.prefill(ids[1 : len(ids) - 1]), len(ids) - 2, "up to the last position")
    check(session.decode(ids[-1]), len(ids) - 1, "decode at the context's end")
    with pytest.raises(ResourceError, match="do not fit the context"):
        session.decode(ids[0])


def check_version(bundle: Bundle) -> None:
    """Skip where the installed onnxruntime is too old for a bundle."""
    oldest = bundle.manifest.min_runtime_version
    assert oldest is not None
    if release(onnxruntime.__version__) < release(oldest):
        pytest.skip(reason=f"onnxruntime {onnxruntime.__version__}: this graph needs {oldest}")


def check_bundle(bundle: Bundle, source: Path, limit: float = TOLERANCE) -> None:
    check_version(bundle)
    ids = random_ids(bundle.manifest.context, bundle.manifest.vocab_size)
    with open_session(bundle, SessionOptions(threads=2)) as session:  # type: ignore[attr-defined]
        check_session(session, Reference(source).logits(ids), ids, limit)


def test_every_architecture_unquantized(tiny_model: Path, export: Export) -> None:
    bundle = export(tiny_model)
    assert (bundle.manifest.method, bundle.manifest.context) == ("none", MAX_POSITIONS)
    check_bundle(bundle, tiny_model)


def test_every_architecture_quantized(tiny_checkpoint: Path, export: Export) -> None:
    bundle = export(tiny_checkpoint)
    assert (bundle.manifest.method, bundle.manifest.bits) == ("rtn", 4)
    check_bundle(bundle, tiny_checkpoint)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
    "one head each": ("llama", {"num_key_value_heads": 4}),
    "one kv head": ("qwen2", {"num_key_value_heads": 1}),
    "rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "rope llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "rope yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 24,
            }
        },
    ),
    "rope theta": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    "head size 8": ("llama", {"head_dim": 8}),
    "head size 24, norms": ("qwen3", {"head_dim": 24}),
    "window": ("mistral", {"sliding_window": 7}),
    "window of one chunk": ("mistral", {"sliding_window": 32}),
    "window in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "window, head size 8": ("mistral", {"sliding_window": 7, "head_dim": 8}),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int4"])
def test_variants(name: str, quantized: bool, tmp_path: Path, export: Export) -> None:
    model_type, config = VARIANTS[name]
    source = save_random_model(tmp_path / "model", model_type, **config)
    if quantized:
        source = save_quantized(source, tmp_path / "checkpoint")
    check_bundle(export(source), source)


def test_the_parity_check_sees_one_position_of_a_window(tmp_path: Path) -> None:
    """A window that is wrong by one changes the logits by far more than the tolerance."""
    ids = random_ids(MAX_POSITIONS)
    logits = []
    for window in (7, 8):
        path = save_random_model(tmp_path / str(window), "mistral", sliding_window=window)
        logits.append(Reference(path).logits(ids))
    assert relative_error(*logits) > 1000 * TOLERANCE


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [32, 64])
def test_groups_and_schemes(scheme: Any, group_size: int, tmp_path: Path, export: Export) -> None:
    # 64 / 64 = 1 and 192 / 64 = 3 groups: rows of zero points that end within a byte.
    source = save_random_model(tmp_path / "model", "qwen2", intermediate_size=192)
    checkpoint = save_quantized(source, tmp_path / "checkpoint", group_size, scheme)
    bundle = export(checkpoint)
    assert (bundle.manifest.group_size, bundle.manifest.scheme) == (group_size, scheme)
    assert bundle.manifest.unquantized == {}
    check_bundle(bundle, checkpoint)


def test_a_checkpoint_quantized_in_part(tmp_path: Path, export: Export) -> None:
    """172 fits neither the group nor the layout: the MLP stays unquantized, and is listed."""
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=172)
    checkpoint = save_quantized(source, tmp_path / "checkpoint")
    bundle = export(checkpoint)
    reasons = bundle.manifest.unquantized
    assert set(reasons) == {
        f"model.layers.{layer}.mlp.{name}_proj"
        for layer in range(2)
        for name in ("gate", "up", "down")
    }
    assert reasons["model.layers.0.mlp.up_proj"] == "out_features 172 is not a multiple of 8"
    assert reasons["model.layers.1.mlp.down_proj"].startswith("in_features 172 is not a multiple")
    check_bundle(bundle, checkpoint)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_lm_head_rounded_at_export(bits: int, tied: bool, tmp_path: Path, export: Export) -> None:
    """The head alone is rounded: the reference gets the same rounded head."""
    import torch

    from awq_edge.model import w4a16
    from awq_edge.model.lm_head import LM_HEAD_GROUP_SIZE, LM_HEAD_SCHEMES

    source = save_random_model(tmp_path / "model", "llama", tie_word_embeddings=tied)
    bundle = export(source, lm_head_bits=bits)
    assert bundle.manifest.lm_head_bits == bits
    reference = Reference(source)
    head = reference.model.get_output_embeddings()
    rounded = w4a16.quantize(
        head.weight.detach().numpy(), bits, LM_HEAD_GROUP_SIZE, LM_HEAD_SCHEMES[bits]
    )
    head.weight = torch.nn.Parameter(torch.from_numpy(w4a16.dequantize(rounded)))
    ids = random_ids(MAX_POSITIONS)
    with open_session(bundle, SessionOptions(threads=2)) as session:  # type: ignore[attr-defined]
        check_session(session, reference.logits(ids), ids, TOLERANCE)


def test_accuracy_level_4_stays_close(llama_checkpoint: Path, export: Export) -> None:
    bundle = export(llama_checkpoint, parity_recipe(**{"runtime.accuracy_level": 4}))
    assert bundle.manifest.accuracy_level == 4
    check_bundle(bundle, llama_checkpoint, LEVEL_4_TOLERANCE)


@pytest.mark.parametrize("level", [0, 4])
def test_float16_activations(level: int, tiny_checkpoint: Path, export: Export) -> None:
    recipe = parity_recipe(
        **{"runtime.activation_dtype": "float16", "runtime.accuracy_level": level}
    )
    if Checkpoint.open(tiny_checkpoint).decoder.architecture.overflows_float16:
        with pytest.raises(ConfigError, match="exceed what float16 can hold"):
            export(tiny_checkpoint, recipe)
        return
    bundle = export(tiny_checkpoint, recipe)
    assert {port.dtype for port in bundle.manifest.outputs} == {"float16"}
    limit = HALF_TOLERANCE if level == 0 else LEVEL_4_TOLERANCE
    check_bundle(bundle, tiny_checkpoint, limit)


def test_head_size_8_and_ffn_172(awkward: Path, export: Export) -> None:
    """The sizes of stories260k: rotation apart, tied embeddings."""
    check_bundle(export(awkward, context=MAX_POSITIONS), awkward)


def test_stories_greedy_text_is_the_known_one(stories: Path, export: Export) -> None:
    """200 greedy tokens are transformers' and begin with the text of the model's README."""
    import awq_edge

    readme = (stories.parent / "README.md").read_text(encoding="utf-8")
    known = readme.partition('"Once upon a time" gives "')[2].partition('"')[0]
    assert known.startswith("Once upon a time, there was")
    with awq_edge.load(export(stories).path) as model:
        generation = model.generate("Once upon a time", max_new_tokens=200, ignore_eos=True)
    assert ("Once upon a time" + generation.text).startswith(known)
    # Each token is transformers' choice after the same text: so are all of them, one by one.
    prompt, ids = list(generation.prompt_ids), list(generation.ids)
    choices = Reference(stories).logits(prompt + ids).argmax(axis=1)
    assert ids == choices[len(prompt) - 1 : -1].tolist()
    assert len(ids) == 200


def test_a_smaller_context_takes_a_smaller_cache(export: Export, llama: Path) -> None:
    """`--context` below what was exported: the same logits, and memory for fewer positions."""
    bundle = export(llama)
    ids = random_ids(20, bundle.manifest.vocab_size)
    with (
        open_session(bundle, SessionOptions()) as whole,
        open_session(bundle, SessionOptions(context=24)) as small,
    ):
        expected, found = whole.prefill(ids).copy(), small.prefill(ids).copy()
        assert small.memory.kv_cache * MAX_POSITIONS == whole.memory.kv_cache * 24
    np.testing.assert_array_equal(found, expected)
