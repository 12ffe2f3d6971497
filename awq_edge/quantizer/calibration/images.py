"""Calibration samples of vision-language models: every other one has an image.

    BOS, question's frame, [image tokens], question, answer, text up to the sample's length

The image goes through the model's own image processor, the question through its chat template where
it has one. All samples have one length; it grows beyond `length` where an image alone takes more.
"""

from __future__ import annotations

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
from awq_edge.quantizer.calibration.text import CalibrationSet, ImageInputs, load_calibration
from awq_edge.runtime.chat_template import ChatTemplate, load_chat_template
from awq_edge.runtime.tokenizer import Tokenizer

# Every sample has text behind its image.
_MIN_TEXT = 32
# An image whose number of tokens follows its size is made smaller beyond this share of a sample.
_IMAGE_SHARE = 0.5
_SHRINK_STEPS = 8


def load_image_calibration(
    checkpoint: Checkpoint,
    source: str | Path | None,
    images: Path | None,
    *,
    samples: int,
    length: int,
    seed: int,
) -> CalibrationSet:
    """Draw the calibration set of a vision-language model.

    source, samples, length, seed: see `load_calibration`. images: a folder of pictures, or None for
    drawn ones. Raises ConfigError for a folder or text that is of no use, or an image that the
    model's positions do not hold; ModelError for an image processor that cannot be loaded.
    """
    decoder = checkpoint.decoder
    assert decoder.images is not None
    tokenizer = Tokenizer(checkpoint.path)
    random = np.random.default_rng(seed)
    count = (samples + 1) // 2
    length = min(length, decoder.max_positions)
    processor = _Processor(checkpoint.path, decoder.images)
    limit = int(_IMAGE_SHARE * length)
    template = load_chat_template(checkpoint.path, tokenizer.special_tokens)
    prompts = [
        _prompt(picture, processor, tokenizer, template, decoder.images, limit)
        for picture in load_pictures(images, count, random)
    ]
    needed = max(len(prompt.ids) for prompt in prompts) + _MIN_TEXT
    if needed > decoder.max_positions:
        raise ConfigError(
            f"a calibration sample with an image has {needed} tokens, the model takes "
            f"{decoder.max_positions}; use smaller pictures (--images) or shorter questions"
        )
    text = load_calibration(
        source,
        tokenizer,
        samples=samples,
        length=max(length, needed),
        seed=seed,
        max_positions=decoder.max_positions,
    )
    ids = text.ids.copy()
    inputs: list[ImageInputs | None] = [None] * samples
    bos = len(tokenizer.prefix_ids)
    for prompt, sample in zip(prompts, range(0, samples, 2), strict=True):
        # The text's own BOS gives way: the prompt begins with one.
        parts = [prompt.ids, prompt.answer, text.ids[sample, bos:]]
        ids[sample] = np.concatenate(parts)[: ids.shape[1]]
        inputs[sample] = prompt.inputs
    _check_image_tokens(ids, prompts, decoder.images)
    pictures = "drawn pictures" if images is None else f"pictures of {images}"
    source_words = f"{text.source}; {count} of {samples} samples with {pictures}"
    return replace(text, ids=ids, source=source_words, images=tuple(inputs))


@dataclass(frozen=True)
class _Prompt:
    """ids: int64, with `tokens` image tokens among them. answer: int64. inputs: of the image."""

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]
    tokens: int
    inputs: ImageInputs


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


def _check_image_tokens(
    ids: npt.NDArray[np.int64], prompts: list[_Prompt], images: ImageTokens
) -> None:
    """Raises ConfigError where a text has the image token too."""
    seen, wanted = int((ids == images.image_id).sum()), sum(prompt.tokens for prompt in prompts)
    if seen != wanted:
        raise ConfigError(
            f"the calibration text has the model's image token (id {images.image_id}) "
            f"{seen - wanted} times; leave it out of --calibration and of what is said of images"
        )
