"""Vision-language models: the parts beside the decoder, and the tokens of an image.

image ── vision tower ── projector ──┐ in the place of the tokens `image_id`
text ─────────── embedding ──────────┴── decoder

Tower and projector stay in 16 bits. The decoder's configuration is config.json's text_config, or
lies flat beside vision_config in files of earlier transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.input_files import show_text
from awq_edge.errors import ModelError
from awq_edge.model.archs.known_keys import unknown_keys

if TYPE_CHECKING:
    from awq_edge.model.archs.base import Architecture, Config

_MAX_PATCH = 4_096  # pixels
# Keys that a text_config may leave to the level above it.
_SHARED_KEYS = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Tower:
    """A kind of vision tower: transformers' defaults for sizes that vision_config lacks.

    patch_size: pixels of a patch's side. merge_size: patches of a side that become one token.
    extra: embeddings beside those of the patches (a class token).
    """

    patch_size: int
    merge_size: int = 1
    extra: int = 0


@dataclass(frozen=True)
class Vision:
    """The part of a vision-language model that is not its decoder. Names are as on disk.

    parts: modules that are kept as they are, with all that is below them. in_memory: how names on
    disk begin -> what transformers' class has there; files may have that form too. optional_level:
    a level of names below `parts` that some files have and some versions of the class lack.
    texts: model_types of text_config whose blocks the decoder may have -> what transformers takes
    where text_config lacks a key; the first one is that of a text_config without a model_type.
    Empty where the architecture itself describes the blocks.
    image_token: key of config.json with the id that stands for an image's embeddings, and the id
    where the key is missing. image_token_alias: transformers' other name of that key, which goes
    before it. frame: the same of the ids that stand before and after an image.
    towers: model_types of vision_config that the model may have; the first one is that of a
    vision_config without a model_type. selection: key that says whether the first embedding of the
    tower is dropped ("default") or not ("full"). marks_images: transformers' class is told which
    tokens are an image's (`mm_token_type_ids`).
    """

    parts: tuple[str, ...]
    in_memory: Mapping[str, str]
    image_token: tuple[str, int]
    towers: Mapping[str, Tower]
    texts: Mapping[str, Config] = field(default_factory=dict)
    optional_level: str | None = None
    image_token_alias: str | None = None
    frame: tuple[tuple[str, int], tuple[str, int]] | None = None
    selection: str | None = None
    marks_images: bool = False

    def keeps(self, name: str) -> bool:
        """True where the tensor of this name on disk is in one of `parts`."""
        return any(name.startswith(f"{part}.") for part in self.parts)

    def name_in_memory(self, name: str) -> str:
        """A name on disk as transformers' class has it, but for the optional level."""
        return _replaced(name, self.in_memory)

    def name_on_disk(self, name: str) -> str:
        """A name as transformers' class has it, or as on disk already, in the form on disk."""
        return _replaced(name, {memory: disk for disk, memory in self.in_memory.items()})

    def without_level(self, name: str) -> str:
        """A name without the optional level: what a file and the class can agree on."""
        if self.optional_level is None:
            return name
        return name.replace(f".{self.optional_level}.", ".")


@dataclass(frozen=True)
class ImageTokens:
    """An image among the tokens of a decoder.

    image_id: the token whose embeddings are the image's. before, after: ids that frame them.
    patch_size: pixels of a patch's side. merge_size: side, in patches, of what becomes one token.
    extra: tokens beside those of the patches; -1 where one of them is dropped.
    """

    image_id: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    patch_size: int
    merge_size: int
    extra: int

    def count(self, rows: int, columns: int, frames: int = 1) -> int:
        """Tokens of an image of so many patches."""
        return frames * rows * columns // self.merge_size**2 + self.extra


@dataclass(frozen=True)
class TextConfig:
    """The text_config of a vision-language model. name: of its keys, as `known_keys` has it.
    unknown: keys that transformers' class does not have, with their values; not among `keys`."""

    name: str
    keys: ConfigKeys
    unknown: dict[str, Any]


def class_names(arch: Architecture, keys: ConfigKeys) -> tuple[str, ...]:
    """The classes that transformers reads config.json's first level with: the model's, and its
    decoder's where that lies flat in it."""
    vision = arch.vision
    is_flat = vision is not None and not vision.texts and "text_config" not in keys
    return (arch.model_type, f"{arch.model_type}.text") if is_flat else (arch.model_type,)


def text_part(arch: Architecture, keys: ConfigKeys) -> tuple[Architecture, TextConfig | None]:
    """The architecture of a vision-language model's decoder, and its configuration; None where
    that lies flat in `keys`.

    Raises ModelError where text_config is of a model_type that the model cannot have.
    """
    vision = arch.vision
    assert vision is not None
    text = keys.table("text_config")
    if text is None and not vision.texts:
        return arch, None
    text = text or ConfigKeys({})
    outer, inner = keys.flag("tie_word_embeddings"), text.flag("tie_word_embeddings")
    name = f"{arch.model_type}.text"
    if vision.texts:
        name = text.text("model_type", next(iter(vision.texts)), nullable=True)
        arch = _with_blocks_of(arch, vision, name)
    shared = {key: keys.values[key] for key in _SHARED_KEYS if key in keys}
    unknown = unknown_keys((name,), {key: text.values[key] for key in text.unread()})
    text = text.without(unknown).with_defaults(shared)
    return arch, TextConfig(name, text.replacing({"tie_word_embeddings": outer or inner}), unknown)


def image_tokens(vision: Vision, keys: ConfigKeys) -> ImageTokens:
    """The image tokens of a config.json. Raises ModelError for a vision tower that is not known."""
    tower = keys.table("vision_config") or ConfigKeys({})
    kind = tower.text("model_type", next(iter(vision.towers)), nullable=True)
    if kind not in vision.towers:
        raise ModelError(
            f"config.json: vision_config has model_type '{show_text(kind)}', which is not "
            f"supported for {keys.text('model_type')}; supported: {', '.join(vision.towers)}"
        )
    known = vision.towers[kind]
    drops_first = vision.selection is not None and (
        keys.text(vision.selection, "default") == "default"
    )
    frame = [_token_id(keys, key) for key in vision.frame or ()]
    return ImageTokens(
        image_id=_token_id(keys, _image_key(vision, keys)),
        before=tuple(frame[:1]),
        after=tuple(frame[1:]),
        patch_size=tower.size("patch_size", _MAX_PATCH, known.patch_size),
        merge_size=tower.size("spatial_merge_size", _MAX_PATCH, known.merge_size),
        extra=known.extra - int(drops_first),
    )


def _with_blocks_of(arch: Architecture, vision: Vision, model_type: str) -> Architecture:
    """The decoder's architecture: blocks of another model_type under the names of this one."""
    from awq_edge.model.archs import architectures

    if model_type not in vision.texts:
        raise ModelError(
            f"config.json: text_config has model_type '{show_text(model_type)}', which is not "
            f"supported for {arch.model_type}; supported: {', '.join(vision.texts)}"
        )
    blocks = architectures()[model_type]
    return dataclasses.replace(
        blocks,
        model_type=arch.model_type,
        examples=arch.examples,
        embedding=arch.embedding,
        layers=arch.layers,
        final_norm=arch.final_norm,
        lm_head=arch.lm_head,
        vision=vision,
        defaults={**blocks.defaults, **vision.texts[model_type]},
    )


def _image_key(vision: Vision, keys: ConfigKeys) -> tuple[str, int]:
    name, default = vision.image_token
    alias = vision.image_token_alias
    keys.settle(name)  # the alias goes before it
    return (alias if alias is not None and alias in keys.values else name, default)


def _token_id(keys: ConfigKeys, key: tuple[str, int]) -> int:
    name, default = key
    token_id = keys.token_id(name, default)
    if token_id is None:
        raise keys.refusal(name, "must be a token id", None)
    return token_id


def _replaced(name: str, beginnings: Mapping[str, str]) -> str:
    """A name with the longest of `beginnings` that it has replaced."""
    for beginning in sorted(beginnings, key=len, reverse=True):
        if name == beginning or name.startswith(f"{beginning}."):
            return beginnings[beginning] + name[len(beginning) :]
    return name
