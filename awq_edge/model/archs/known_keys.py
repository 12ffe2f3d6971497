"""Keys of config.json by their effect: read, without effect, unknown to transformers.

    read            by `resolve_decoder`, which asks for them by name
    no effect       NO_EFFECT, `Architecture.no_effect`, and what belongs to generation
    unknown         transformers' class does not have it: ignored there too, and named here
    doubtful        unknown, in a file of a newer transformers, whose class may have it
    another         of transformers' class and read by nobody here: the model is refused

What the classes know is config_keys.json, made from one transformers by scripts/config_keys.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.input_files import show, show_text
from awq_edge.errors import ModelError
from awq_edge.units import release

if TYPE_CHECKING:
    from awq_edge.model.archs.decoder import Decoder

FILE = Path(__file__).with_name("config_keys.json")
# Keys of transformers' classes that change no logit of a decoder that is not trained.
NO_EFFECT = frozenset(
    # names, versions, and what belongs to one file alone
    "model_type architectures transformers_version name_or_path _name_or_path _commit_hash "
    "quantization_config "
    # how it is run, not what it computes
    "attn_implementation experts_implementation use_cache chunk_size_feed_forward dtype "
    "torch_dtype "
    # what is returned beside logits
    "output_attentions output_hidden_states output_router_logits return_dict "
    "tie_last_hidden_states "
    # other tasks than text, and tokens that are no input of a text
    "is_encoder_decoder id2label label2id num_labels problem_type pad_token_id "
    # training
    "initializer_range init_std attention_dropout dropout embd_pdrop resid_pdrop layerdrop "
    "router_aux_loss_coef router_jitter_noise".split()
)
# Keys that transformers' classes do not have, and that are in use with values of their own:
# tokenizers', converters' and training tools'.
HARMLESS = frozenset(
    "_model_name_or_path unk_token_id sep_token_id cls_token_id mask_token_id tokenizer_class "
    "is_llama_config rope_interleaved transformers.js_config torchscript auto_map "
    "task_specific_params finetuning_task prefix model_max_length gradient_checkpointing "
    "unsloth_version unsloth_fixed _unsloth_version axolotl_version "
    "_attn_implementation_autoset _attn_implementation _flash_attn_2_enabled use_flash_attn "
    "peft_version".split()
)
_NAMED = 12  # keys that a line names
_VERSION_CHARACTERS = 64


def known_keys(name: str) -> frozenset[str]:
    """The keys of transformers' class: of a model_type, or "<model_type>.text" of the text_config
    of a model that has a class of its own for it. Raises ModelError where none are listed."""
    listed = _data()["classes"].get(name)
    if listed is None:
        raise ModelError(
            f"the keys of transformers' configuration of '{show_text(name)}' are not listed in "
            f"{FILE.name}; run scripts/config_keys.py"
        )
    return frozenset([*_data()["shared"], *listed])


def stated_version() -> str:
    """The transformers that the lists were made from."""
    return str(_data()["transformers"])


def unknown_keys(names: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a file that transformers' classes do not have, with their values. names: of
    `known_keys`."""
    known = frozenset[str]().union(*map(known_keys, names))
    return {key: value for key, value in values.items() if key not in known}


def require_read(keys: ConfigKeys, no_effect: Iterable[str], model_type: str) -> None:
    """Raise ModelError for keys that have an effect in transformers and were read by nobody."""
    harmless = NO_EFFECT.union(_data()["generation"], no_effect)
    unread = [
        f"'{show_text(key)}' is {show(keys.values[key])}"
        for key in keys.unread()
        if key not in harmless and keys.values[key] is not None
    ]
    if unread:
        raise ModelError(
            f"config.json: {', '.join(unread)}; transformers acts on this in a model of "
            f"{model_type}, and nothing reads it here, so that the model would compute something "
            "else; it is not supported"
        )


def doubtful_keys(unknown: Mapping[str, Any], version: str) -> tuple[str, ...]:
    """Unknown keys that this version of transformers may know; of the file, "" for none."""
    numbers = release(version[:_VERSION_CHARACTERS], 3)
    is_older = numbers and numbers <= release(stated_version(), 3)
    if not version or is_older:  # one without a number may be newer
        return ()
    return tuple(
        key for key, value in sorted(unknown.items()) if key not in HARMLESS and not _is_off(value)
    )


def unknown_notes(
    unknown: Iterable[str], doubtful: Iterable[str], model_type: str
) -> tuple[str, ...]:
    """Notes on keys that are ignored, and on doubtful keys, which may have an effect."""
    notes = []
    if unknown:
        notes.append(
            f"config.json: keys that transformers {stated_version()} does not have for "
            f"{model_type} are ignored: {_listed(unknown)}"
        )
    if doubtful:
        notes.append(
            f"config.json was written by a newer transformers, in which these of them may have an "
            f"effect: {_listed(doubtful)}; --allow-unknown-keys ignores them"
        )
    return tuple(notes)


def _listed(names: Iterable[str]) -> str:
    """The first names, as a terminal may show them."""
    first = sorted(names)
    more = f" and {len(first) - _NAMED:,} more" if len(first) > _NAMED else ""
    return ", ".join(map(show_text, first[:_NAMED])) + more


def refuse_doubtful(decoder: Decoder, source: object) -> None:
    """Raise ModelError where a decoder has doubtful keys. source: the model, for the message."""
    if decoder.doubtful_keys:
        raise ModelError(
            f"{show_text(str(source))}: config.json was written by a transformers newer than "
            f"{stated_version()}, and keys are not known here that may change what the model "
            f"computes: {_listed(decoder.doubtful_keys)}; update awq-edge, or give "
            "--allow-unknown-keys to ignore them"
        )


def _is_off(value: object) -> bool:
    """null, false, 0, 1 or "": a switch that is off, a factor without effect."""
    return value is None or value is False or value == "" or (value is not True and value in (0, 1))


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data
