"""Calibration samples of vision-language models: every other one has an image.

    BOS, question's frame, [image tokens], question, answer, text up to the sample's length

The image goes through the model's own image processor, the question through its chat template where
it has one. All samples have one length; it grows beyond `length` where an image alone takes more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.archs.vision import ImageTokens
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.calibration.pictures import Picture, load_pictures, shrunk
from awq_edge.quantizer.calibration.text import CalibrationSet, ImageInputs, image_bytes
from awq_edge.runtime.chat_template import ChatTemplate, load_chat_template
from awq_edge.runtime.tokenizer import Tokenizer

# Every sample has text behind its image.
_MIN_TEXT = 32
# An image whose number of tokens follows its size is made smaller beyond this share of a sample.
_IMAGE_SHARE = 0.5
_SHRINK_STEPS = 8


@dataclass(frozen=True)
class _Prompt:
    """ids: int64, with `tokens` image tokens among them. answer: int64. inputs: of the image."""

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    tokens: int
    inputs: ImageInputs


@dataclass(frozen=True)
class ImagePrompts:
    """The beginnings of every other sample, with an image. length: tokens that a sample needs.
    source: of the pictures, in words. bos: ids that a text begins with."""

    prompts: tuple[_Prompt, ...]
    length: int
    source: str
    bos: int
    images: ImageTokens

    @property
    def sha256(self) -> str:
        """Of ids and pixels."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(
                prompt.ids.astype("<i8").tobytes() + prompt.answer.astype("<i8").tobytes()
            )
            digest.update(image_bytes(prompt.inputs))
        return digest.hexdigest()


def load_image_prompts(
    checkpoint: Checkpoint, images: Path | None, *, samples: int, length: int, seed: int
) -> ImagePrompts:
    """The beginnings of the samples of a vision-language model.

    images: a folder of pictures, or None for drawn ones. samples, length, seed: of the calibration
    set. Raises ConfigError for a folder that is of no use, or an image that the model's positions
    do not hold; ModelError for an image processor that cannot be loaded.
    """
    decoder = checkpoint.decoder
    assert decoder.images is not None
    tokenizer = Tokenizer(checkpoint.path)
    random = np.random.default_rng(seed)
    processor = _Processor(checkpoint.path, decoder.images)
    limit = int(_IMAGE_SHARE * min(length, decoder.max_positions))
    template = load_chat_template(checkpoint.path, tokenizer.special_tokens)
    prompts = tuple(
        _prompt(picture, processor, tokenizer, template, decoder.images, limit)
        for picture in load_pictures(images, (samples + 1) // 2, random)
    )
    needed = max(len(prompt.ids) for prompt in prompts) + _MIN_TEXT
    if needed > decoder.max_positions:
        raise ConfigError(
            f"a calibration sample with an image has {needed} tokens, the model takes "
            f"{decoder.max_positions}; use smaller pictures (--images) or shorter questions"
        )
    source = "drawn pictures" if images is None else f"pictures of {images}"
    return ImagePrompts(prompts, needed, source, len(tokenizer.prefix_ids), decoder.images)


def with_images(text: CalibrationSet, prompts: ImagePrompts) -> CalibrationSet:
    """A set of text with the prompts before every other sample, cut to its length.

    Raises ConfigError where the text has the image token too.
    """
    samples = len(text.ids)
    ids = text.ids.copy()
    inputs: list[ImageInputs | None] = [None] * samples
    for prompt, sample in zip(prompts.prompts, range(0, samples, 2), strict=True):
        # The text's own BOS gives way: the prompt begins with one.
        parts = [prompt.ids, prompt.answer, text.ids[sample, prompts.bos :]]
        ids[sample] = np.concatenate(parts)[: ids.shape[1]]
        inputs[sample] = prompt.inputs
    _check_image_tokens(ids, prompts)
    count = len(prompts.prompts)
    source = f"{text.source}; {count} of {samples} samples with {prompts.source}"
    return replace(text, ids=ids, source=source, images=tuple(inputs))


class _Processor:
    """The model's image processor, without torchvision, and the tokens of what it makes."""

    def __init__(self, path: Path, images: ImageTokens) -> None:
        from transformers import AutoImageProcessor

        self._images = images
        try:
            self._processor = AutoImageProcessor.from_pretrained(str(path), backend="pil")
        except (OSError, ValueError, KeyError, ImportError) as error:
            text = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{path}: transformers cannot load the image processor ({text}); copy "
                "preprocessor_config.json from where the model comes from"
            ) from None

    def fitted(self, picture: Picture, limit: int) -> tuple[ImageInputs, int]:
        """The inputs of a picture and their tokens: at most `limit`, where its size decides."""
        inputs, image = self._inputs(picture.image), picture.image
        for _ in range(_SHRINK_STEPS):
            tokens = self._count(inputs)
            if tokens <= limit or "image_grid_thw" not in inputs:
                break
            image = shrunk(image, 0.95 * (limit / tokens) ** 0.5)
            inputs = self._inputs(image)
        return inputs, self._count(inputs)

    def _inputs(self, image: Any) -> ImageInputs:
        arrays = self._processor(images=[image], return_tensors="np")
        inputs = {"pixel_values": np.asarray(arrays["pixel_values"], dtype=np.float32)}
        if "image_grid_thw" in arrays:
            inputs["image_grid_thw"] = np.asarray(arrays["image_grid_thw"], dtype=np.int64)
        return inputs

    def _count(self, inputs: Mapping[str, npt.NDArray[Any]]) -> int:
        if "image_grid_thw" in inputs:
            frames, rows, columns = (int(size) for size in inputs["image_grid_thw"][0])
            return self._images.count(rows, columns, frames)
        height, width = inputs["pixel_values"].shape[-2:]
        size = self._images.patch_size
        return self._images.count(height // size, width // size)


def _prompt(
    picture: Picture,
    processor: _Processor,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    images: ImageTokens,
    limit: int,
) -> _Prompt:
    """The beginning of a sample with an image."""
    inputs, tokens = processor.fitted(picture, limit)
    ids = _question_ids(picture.question, tokenizer, template, images)
    place = ids.index(images.image_id)
    ids[place : place + 1] = [images.image_id] * tokens
    answer = tokenizer.encode(picture.answer, add_special_tokens=False)
    return _Prompt(
        ids=np.asarray(ids, dtype=np.int64),
        answer=np.asarray(answer, dtype=np.int64),
        tokens=tokens,
        inputs=inputs,
    )


def _question_ids(
    question: str, tokenizer: Tokenizer, template: ChatTemplate | None, images: ImageTokens
) -> list[int]:
    """A question about an image, which is one token: by the chat template where it has room for
    an image, else plainly."""
    bos = tokenizer.prefix_ids
    if template is not None:
        content: Any = [{"type": "image"}, {"type": "text", "text": question}]
        try:
            text = template.render([{"role": "user", "content": content}])
        except ConfigError:
            text = ""  # a template for text alone
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids.count(images.image_id) == 1:
            return ids if ids[: len(bos)] == bos else bos + ids
    words = tokenizer.encode(f"\n{question}\n", add_special_tokens=False)
    return [*bos, *images.before, images.image_id, *images.after, *words]


def _check_image_tokens(ids: npt.NDArray[np.int64], prompts: ImagePrompts) -> None:
    """Raises ConfigError where a text has the image token too."""
    images = prompts.images
    seen = int((ids == images.image_id).sum())
    wanted = sum(prompt.tokens for prompt in prompts.prompts)
    if seen != wanted:
        raise ConfigError(
            f"the calibration text has the model's image token (id {images.image_id}) "
            f"{seen - wanted} times; leave it out of --calibration and of what is said of images"
        )
