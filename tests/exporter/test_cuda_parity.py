"""Bundles for runtime cuda, executed with the kernels' interface in NumPy, against transformers.

What is tested is the program, the weights and the backend that drives the kernels; the kernels
themselves are tested on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.runtime.backends.cuda.session import CudaSession
from awq_edge.runtime.session import SessionOptions
from tests.runtime.backends.host_kernels import HostDevice, HostKernels

from .conftest import Export, cuda_types
from .models import Reference, random_ids, save_quantized, save_random_model
from .test_cuda_bundle import cuda_recipe
from .test_parity import VARIANTS, check_session

# Of the largest logit: 2**-11 (2**-8) a rounding of an activation, some dozen a layer, which the
# sharp attention of these models multiplies. A wrong position, window or zero point is above 0.1.
HALF_TOLERANCE = 1e-2
BFLOAT16_TOLERANCE = 8e-2
CT = "compressed-tensors"
PREFIX = "model.layers.1."

# Indirect: the models of other files are made by the fixture of this name, and are kept.
EVERY = pytest.mark.parametrize("model_type", cuda_types(), indirect=True, scope="session")


def check_bundle(bundle: Bundle, source: Path, limit: float = HALF_TOLERANCE) -> None:
    ids = random_ids(bundle.manifest.context, bundle.manifest.vocab_size)
    with CudaSession(bundle, SessionOptions(), HostDevice(), HostKernels()) as session:
        check_session(session, Reference(source).logits(ids), ids, limit)  # type: ignore[arg-type]


def check_architecture(path: Path, export: Export) -> Bundle:
    """In float16, or in bfloat16 where that overflows."""
    wide = Checkpoint.open(path).decoder.architecture.overflows_float16
    recipe = cuda_recipe(**({"runtime.activation_dtype": "bfloat16"} if wide else {}))
    bundle = export(path, recipe)
    check_bundle(bundle, path, BFLOAT16_TOLERANCE if wide else HALF_TOLERANCE)
    return bundle


@EVERY
def test_every_architecture_unquantized(plugin_model: Path, export: Export) -> None:
    if Checkpoint.open(plugin_model).decoder.moe is not None:
        pytest.skip(reason="runtime cuda has quantized experts alone")
    check_architecture(plugin_model, export)


@EVERY
def test_every_architecture_quantized(plugin_model: Path, tmp_path: Path, export: Export) -> None:
    checkpoint = save_quantized(plugin_model, tmp_path / "checkpoint")
    assert check_architecture(checkpoint, export).manifest.bits == 4


def fitting_variants() -> list[str]:
    """Those of the graph's variants whose heads the kernels have."""
    return [name for name, (_, config) in VARIANTS.items() if config.get("head_dim", 32) % 32 == 0]


@pytest.mark.parametrize("name", fitting_variants())
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int4"])
def test_variants(name: str, quantized: bool, tmp_path: Path, export: Export) -> None:
    model_type, config = VARIANTS[name]
    source = save_random_model(tmp_path / "model", model_type, **config)
    if quantized:
        source = save_quantized(source, tmp_path / "checkpoint")
    check_bundle(export(source, cuda_recipe()), source)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_bits(bits: int, tmp_path: Path, export: Export) -> None:
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=192)
    path = save_quantized(source, tmp_path / "out", 64, bits=bits, layout=CT)
    check_bundle(export(path, cuda_recipe()), path)


def test_linears_that_differ(tmp_path: Path, export: Export) -> None:
    """q, k and v apart, and gate and up: their buffers, and SiLU without the epilogue."""
    others: dict[str, Any] = {
        f"{PREFIX}self_attn.k_proj": NumberFormat(8, 32, "symmetric"),
        f"{PREFIX}mlp.up_proj": NumberFormat(4, 64, "symmetric"),
    }
    sizes = {"attention_bias": True, "mlp_bias": True, "intermediate_size": 192}
    source = save_random_model(tmp_path / "model", "llama", **sizes)
    path = save_quantized(source, tmp_path / "out", layout=CT, others=others)
    check_bundle(export(path, cuda_recipe()), path)


def test_bfloat16(llama_checkpoint: Path, export: Export) -> None:
    recipe = cuda_recipe(**{"runtime.activation_dtype": "bfloat16"})
    check_bundle(export(llama_checkpoint, recipe), llama_checkpoint, BFLOAT16_TOLERANCE)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_lm_head_that_the_checkpoint_has_quantized(
    bits: int, llama: Path, tmp_path: Path, export: Export
) -> None:
    others = {"lm_head": NumberFormat(bits, 32, "symmetric")}
    path = save_quantized(llama, tmp_path / "out", layout=CT, others=others)
    bundle = export(path, cuda_recipe(), lm_head_bits=None)
    assert bundle.manifest.lm_head_bits == bits
    check_bundle(bundle, path)
