"""The calibration set of a run: from a text, or, without one, the model's own samples where they
are affordable and the packaged text for the rest.

What is drawn by the model is drawn late, when the folder of finished blocks is open: the plan's key
says what it will be, and a run that goes on reads it from there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from awq_edge.artifacts.directories import hash_file
from awq_edge.artifacts.file_names import CALIBRATION_FILE
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.calibration.images import ImagePrompts, load_image_prompts, with_images
from awq_edge.quantizer.calibration.own_text import (
    OwnText,
    Progress,
    affordable_samples,
    drawing_cost,
    own_text,
    too_large,
)
from awq_edge.quantizer.calibration.text import SELF, CalibrationSet, load_calibration
from awq_edge.quantizer.report.schema import PACKAGED, CalibrationFile
from awq_edge.recipe.recipes import CalibrationDefaults
from awq_edge.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration set is made of.

    own: samples that the model writes. text: those of a text, behind them; one of the two is there.
    prompts: of a vision-language model. notes: what a user did not ask for, in words.
    """

    own: OwnText | None
    text: CalibrationSet | None
    prompts: ImagePrompts | None
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """sha256 over what the set depends on beside weights, versions and machine."""
        parts = [
            "" if self.own is None else self.own.key,
            "" if self.text is None else self.text.sha256,
            "" if self.prompts is None else self.prompts.sha256,
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def draw(self, folder: Path, progress: Progress | None = None) -> CalibrationSet:
        """The set. folder: keeps what the model writes; see `OwnText.ids`."""
        drawn = self.text
        if self.own is not None:
            file = folder / CALIBRATION_FILE
            drawn = self._own_set(self.own, file, progress)
            if self.text is not None:
                drawn = _joined(drawn, self.text)
        assert drawn is not None
        return drawn if self.prompts is None else with_images(drawn, self.prompts)

    def _own_set(self, own: OwnText, file: Path, progress: Progress | None) -> CalibrationSet:
        ids = own.ids(file, progress)
        entry = hash_file(file)
        talks = own.conversations
        words = f"{len(ids):,} samples of the model's own"
        return CalibrationSet(
            ids,
            f"{words}, {talks:,} of them conversations" if talks else words,
            self.seed,
            files=(
                CalibrationFile(
                    name=CALIBRATION_FILE,
                    sha256=entry.sha256,
                    bytes=entry.size,
                    documents=len(ids),
                    whole=True,
                ),
            ),
            own_samples=len(ids),
            conversations=talks,
        )


def plan_calibration(
    checkpoint: Checkpoint,
    defaults: CalibrationDefaults,
    source: str | Path | None,
    images: Path | None,
    device: torch.device,
) -> CalibrationPlan:
    """Plan the calibration set.

    source: "self", "packaged", or see `load_calibration`; None for the model's own samples, as many
    as are affordable, and packaged text for the rest. images: see `load_image_prompts`.
    Raises ConfigError for a source that is of no use, or a model that does not fit the device whole
    with "self"; ModelError for a tokenizer that does not belong to the model.
    """
    samples, seed, decoder = defaults.samples, defaults.seed, checkpoint.decoder
    length, prompts = min(defaults.length, decoder.max_positions), None
    if decoder.images is not None:
        prompts = load_image_prompts(checkpoint, images, samples=samples, length=length, seed=seed)
        length = max(length, prompts.length)
    tokenizer = Tokenizer(checkpoint.path)
    count = 0
    notes: tuple[str, ...] = ()
    if source == SELF:
        if (why := too_large(drawing_cost(decoder, device, length, samples))) is not None:
            raise ConfigError(f"--calibration self: {why}; give --calibration packaged, or a text")
        count = samples
    elif source is None:
        count, why = affordable_samples(decoder, device, samples=samples, length=length)
        notes = () if why is None else (_shortage(count, samples, why),)
    text = None
    if count < samples:
        text = load_calibration(
            PACKAGED if source is None else source,
            tokenizer,
            samples=samples - count,
            length=length,
            seed=seed,
            max_positions=decoder.max_positions,
        )
        if (most := int(text.ids.max())) >= decoder.vocab_size:
            raise ModelError(
                f"{checkpoint.path}: its tokenizer has ids up to {most}, config.json a vocab_size "
                f"of {decoder.vocab_size}; they do not belong together"
            )
    own = own_text(checkpoint, tokenizer, device, samples=count, length=length, seed=seed)
    return CalibrationPlan(own, text, prompts, seed, notes)


def _shortage(count: int, samples: int, why: str) -> str:
    """Why the packaged text stands for samples of the model's own."""
    if count == 0:
        return f"calibration: the packaged text, not the model's own samples: {why}"
    return (
        f"calibration: {count:,} of {samples:,} samples are the model's own, the rest packaged "
        f"text: {why}"
    )


def _joined(first: CalibrationSet, second: CalibrationSet) -> CalibrationSet:
    """Two sets of text behind each other."""
    return replace(
        first,
        ids=np.concatenate([first.ids, second.ids]),
        source=f"{first.source}; {len(second.ids):,} of the {second.source} text",
        files=(*first.files, *second.files),
        left_out={**first.left_out, **second.left_out},
    )
