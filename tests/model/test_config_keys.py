"""No key of a config.json that has an effect in transformers is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.errors import ModelError
from awq_edge.fit.models import find_model
from awq_edge.inspect.model import inspect_model
from awq_edge.model.archs import architectures, decoder_from_config
from awq_edge.model.archs.known_keys import FILE, HARMLESS, NO_EFFECT, known_keys, stated_version
from awq_edge.recipe.recipes import load_recipe
from tests.arch_configs import tiny_config

SIZES: dict[str, Any] = {
    "vocab_size": 72,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
NEWER = "99.0.0"
# What may stand for a key that transformers takes and does not write; the rest are none of its.
LEGACY = {
    "num_experts": 4,
    "rope_scaling": {"rope_type": "default", "rope_theta": 500.0},
    "rope_theta": 500.0,
    "rope_local_base_freq": 500.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 64,
    "sliding_window_pattern": 2,
    "torch_dtype": "bfloat16",
    "is_causal": True,
    "image_token_id": 5,
}
REFUSED = {"per_layer_config"}  # overrides keys of single layers


def llama(**keys: Any) -> dict[str, Any]:
    return {"model_type": "llama", **SIZES, **keys}


def configs(model_type: str) -> list[tuple[str, dict[str, Any]]]:
    """Names of `known_keys`, each with a file of every key that the class writes."""
    transformers = pytest.importorskip("transformers", reason="host extra")
    settings = transformers.AutoConfig.for_model(model_type, **tiny_config(model_type, SIZES))
    whole = json.loads(settings.to_json_string(use_diff=False))
    vision = architectures()[model_type].vision
    if vision is None:
        return [(model_type, whole)]
    text = model_type + ".text" if not vision.texts else whole["text_config"]["model_type"]
    return [(model_type, whole), (text, whole)]


def test_the_lists_are_those_of_the_installed_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="host extra")
    if transformers.__version__ != stated_version():
        pytest.skip(reason=f"transformers {transformers.__version__}: not the stated one")
    import importlib.util

    script = Path(__file__).parents[2] / "scripts" / "config_keys.py"
    spec = importlib.util.spec_from_file_location("config_keys_script", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.render() == FILE.read_text(encoding="utf-8"), "run scripts/config_keys.py"


@pytest.mark.parametrize("model_type", architectures())
def test_every_key_of_the_class_is_read_or_has_no_effect(model_type: str) -> None:
    for name, whole in configs(model_type):
        decoder_from_config(whole)  # what the class writes, all at once
        level = whole["text_config"] if name != model_type else whole
        for key in sorted(known_keys(name) - set(level) - NO_EFFECT - REFUSED):
            value = LEGACY.get(key, 1)
            if key == "head_dim":
                value = level["hidden_size"] // level["num_attention_heads"]
            if key == "rope_local_base_freq":
                level.pop("rope_parameters")
            changed = {**level, key: value}
            if level is not whole:
                changed = {**whole, "text_config": changed}
            assert decoder_from_config(changed).doubtful_keys == (), key


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_key_of_the_class_that_nothing_reads_is_refused(key: str) -> None:
    with pytest.raises(ModelError, match=f"'{key}' is .* nothing reads it here"):
        decoder_from_config(llama(**{key: {"0": {"head_dim": 16}}}))
    assert decoder_from_config(llama(**{key: None})).notes == ()
    with pytest.raises(ModelError, match="'is_causal' is false, which is not supported"):
        decoder_from_config(llama(is_causal=False))


def test_keys_that_no_field_of_an_architecture_reads_are_named() -> None:
    """As if granite had been added by the fields of Llama alone."""
    from dataclasses import replace

    plain = replace(architectures()["llama"], model_type="granite")
    config = {**llama(), "embedding_multiplier": 12.0, "logits_scaling": 3}
    with pytest.raises(
        ModelError, match=r"'embedding_multiplier' is 12\.0, 'logits_scaling' is 3; "
    ):
        plain.decoder(config)


@pytest.mark.parametrize("model_type", architectures())
def test_tiny_models_move_every_number_off_its_default(model_type: str) -> None:
    """Parity tests see a number that is not read only where transformers' own is another."""
    transformers = pytest.importorskip("transformers", reason="host extra")
    from tests.exporter.models import TINY

    sizes = tiny_config(model_type, TINY)
    settings = transformers.AutoConfig.for_model(model_type, **sizes)
    settings = settings.get_text_config()
    default = type(settings)().to_dict()
    of_models = (architectures()[name].no_effect for name in ("llama", model_type))
    no_effect = NO_EFFECT.union(*of_models)
    same = []
    for key, value in numbers(settings.to_dict()).items():
        has_effect = key.split(".")[0] not in no_effect and not key.endswith("_token_id")
        if has_effect and numbers(default).get(key) == value:
            same.append(key)
    assert same == []


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number, those in objects under joined names."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = value
    return found


SMOLLM2 = {  # of SmolLM2-135M on the hub, and of its conversion
    "is_llama_config": True,
    "rope_interleaved": False,
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "_model_name_or_path": "Smollm2 135M 8k Lc100K Mix1 Ep2",
    "unk_token_id": 3,
}
TRAINING = {"unsloth_version": "2025.1", "tokenizer_class": "LlamaTokenizer", "torchscript": True}


@pytest.mark.parametrize("version", [None, "4.40.1", NEWER])
@pytest.mark.parametrize("keys", [SMOLLM2, TRAINING])
def test_keys_of_other_tools_are_ignored_and_named_once(
    keys: dict[str, Any], version: str | None
) -> None:
    decoder = decoder_from_config(llama(transformers_version=version, **keys))
    (note,) = decoder.notes
    assert note.endswith("for llama are ignored: " + ", ".join(sorted(keys)))
    assert decoder.doubtful_keys == ()
    assert set(keys) <= HARMLESS


@pytest.mark.parametrize("value", [None, False, 0, 0.0, 1, 1.0, ""])
def test_a_switch_that_is_off_is_no_doubt(value: object) -> None:
    assert decoder_from_config(llama(transformers_version=NEWER, x=value)).doubtful_keys == ()


@pytest.mark.parametrize("value", [True, 2, 0.5, "on", [], {}, [0]])
@pytest.mark.parametrize(
    ("version", "is_doubtful"),
    [
        (None, False),
        ("", False),
        ("4.40.1", False),
        (stated_version(), False),
        (f"{stated_version()}.dev0", False),
        ("9" * 5000, True),
        ("5.100.0.dev0", True),
        (NEWER, True),
        ("main", True),
    ],
)
def test_a_newer_transformers_may_know_more(
    version: str | None, is_doubtful: bool, value: object
) -> None:
    decoder = decoder_from_config(llama(transformers_version=version, embedding_multiplier=value))
    assert decoder.doubtful_keys == (("embedding_multiplier",) if is_doubtful else ())
    assert decoder.embedding_scale == 1.0


def test_keys_inside_objects_are_judged_too() -> None:
    ropes = {"rope_type": "default", "rope_theta": 500.0, "spiral": 3}
    decoder = decoder_from_config(llama(transformers_version=NEWER, rope_parameters=ropes))
    assert decoder.doubtful_keys == ("rope_parameters.spiral",)
    config = {"model_type": "llava", **tiny_config("llava", SIZES)}
    config["text_config"] |= {"embedding_multiplier": 12.0}
    decoder = decoder_from_config({**config, "transformers_version": NEWER})
    assert decoder.doubtful_keys == ("text_config.embedding_multiplier",)


def test_unknown_keys_change_nothing() -> None:
    """A key of another architecture's class has no effect in transformers."""
    config = {"model_type": "mixtral", **tiny_config("mixtral", SIZES)}
    moe = decoder_from_config({**config, "decoder_sparse_step": 2}).moe
    assert moe is not None and moe.layers == (True, True)


def test_stages_refuse_them_by_one_line(tmp_path: Path) -> None:
    """Granite's keys under llama, in a file of a newer transformers."""
    pytest.importorskip("torch", reason="host extra")
    from awq_edge.evaluate.report import evaluate_perplexity
    from tests.tiny_models import save_tiny_llama

    model = save_tiny_llama(tmp_path / "model")
    file, text = model / "config.json", tmp_path / "text.txt"
    changes = {"transformers_version": NEWER, "embedding_multiplier": 12.0}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    text.write_text("Once upon a time there was a girl. " * 20)
    out = tmp_path / "out"
    stages: dict[str, Any] = {
        "quantize": lambda **keys: awq_edge.quantize(model, out, load_recipe(method="rtn"), **keys),
        "export": lambda **keys: awq_edge.export(
            model, tmp_path / "bundle", load_recipe(method="none"), **keys
        ),
        "eval": lambda **keys: evaluate_perplexity(model, text, max_tokens=40, **keys),
        "fit": lambda **keys: find_model(str(model), **keys),
    }
    for name, stage in stages.items():
        with pytest.raises(ModelError, match="embedding_multiplier; update awq-edge, or") as error:
            stage()
        assert "\n" not in str(error.value), name
        assert sorted(path.name for path in tmp_path.iterdir())[:2] == ["model", "text.txt"]
    for stage in stages.values():
        stage(allow_unknown_keys=True)
    notes = inspect_model(model, hashes=False).notes
    assert sum("embedding_multiplier" in note for note in notes) == 2
