"""Models, calibration texts and evaluation texts of a study; every measurement is made once.

Perplexity is that of `awq_edge.evaluate.perplexity`, from one model in memory whose blocks are
replaced. A gap to the unquantized model comes with its standard error: both models score the same
tokens, so the mean over windows of the difference of their losses is what varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from awq_edge.artifacts.text_files import Document
from awq_edge.errors import ConfigError
from awq_edge.evaluate.perplexity import check_window, negative_log_likelihoods, windows
from awq_edge.evaluate.text import read_text
from awq_edge.evaluate.torch_models import DenseModel
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.calibration.text import CalibrationSet, load_calibration
from awq_edge.quantizer.report.schema import PACKAGED
from awq_edge.runtime.text_tokens import tokenize
from experiments.recording import RecordedBlock, record, treat_propagating
from experiments.result import Difference, Measurement, SourceInfo
from experiments.smoothquant import Peaks, record_peaks, w8a8_round
from experiments.treatments import UNCODED, Treatment, treat_block

DEFAULT_SAMPLES, LENGTH = 128, 512  # calibration samples unless told otherwise; tokens of one
WINDOW = 1024  # tokens of one input, or the model's context where that is shorter
LARGEST_GROUP = 128

Float64 = npt.NDArray[np.float64]
# (what is being done)
Note = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """source: "packaged", or a text as `quantize --calibration` takes it. seed: draws samples."""

    source: str = PACKAGED
    samples: int = DEFAULT_SAMPLES
    seed: int = 0

    @property
    def label(self) -> str:
        """The source without its folder."""
        return Path(self.source).name


@dataclass(frozen=True)
class Subject:
    """What is measured. model: name of a variant. propagate_error: later blocks are calibrated on
    the outputs of treated ones."""

    model: str
    treatment: Treatment
    calibration: Calibration
    propagate_error: bool = False


@dataclass(frozen=True)
class Text:
    """A text to score. name: of the file. sha256: of the whole file."""

    name: str
    documents: tuple[Document, ...]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Text:
        """Raises ConfigError for a file that is missing, not UTF-8 or empty."""
        text = read_text(path)
        return cls(path.name, text.file.documents, text.sha256)

    @property
    def info(self) -> SourceInfo:
        """As it stands in a report."""
        return SourceInfo(name=self.name, sha256=self.sha256)


class _Model(DenseModel):
    """A transformers model whose blocks are replaced."""

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path, device, "float32")
        self.checkpoint = Checkpoint.open(path)
        self._layers = self.model.get_submodule(self.checkpoint.decoder.architecture.layers)
        self.linears = {n: self.model.get_submodule(n) for n in self.checkpoint.linear_names()}
        self._rounds_activations = False
        for linear in self.linears.values():
            linear.register_forward_pre_hook(
                lambda _, inputs: (
                    (w8a8_round(inputs[0]), *inputs[1:]) if self._rounds_activations else None
                )
            )

    def replace(self, blocks: Sequence[Tensors], *, rounds_activations: bool) -> None:
        """All blocks of the model. blocks: float32, by name relative to the block.
        rounds_activations: whether their linears' inputs are in 8 bits."""
        self._rounds_activations = rounds_activations
        for module, tensors in zip(self._layers, blocks, strict=True):
            module.load_state_dict(dict(tensors), strict=True)


class Workbench:
    """Measures treatments of a model's variants; what was measured before is remembered."""

    def __init__(
        self,
        variants: dict[str, Path],
        *,
        device: torch.device,
        calibration: Calibration,
        max_tokens: int,
        note: Note | None = None,
    ) -> None:
        """variants: model directories by name, unquantized. calibration: the one that most
        measurements use. max_tokens: scored of each text."""
        self._models = {name: _Model(path, device) for name, path in variants.items()}
        self._device = device
        self._main = calibration
        self._max_tokens = max_tokens
        self._note = note or (lambda what: None)
        self._recordings: dict[tuple[str, Calibration], list[RecordedBlock]] = {}
        self._peaks: dict[tuple[str, Calibration], Peaks] = {}
        self._losses: dict[tuple[Subject, Text], list[Float64]] = {}
        contexts = [model.context for model in self._models.values()]
        self.window = min(WINDOW, *contexts)
        self.stride = self.window // 2
        check_window(self.window, self.stride, min(contexts))

    @property
    def models(self) -> list[str]:
        """Names of the variants."""
        return list(self._models)

    @property
    def packages(self) -> Sequence[str]:
        """The packages that compute."""
        return ("numpy", "tokenizers", *next(iter(self._models.values())).packages)

    def bits_per_weight(self, model: str, treatment: Treatment) -> float:
        """Mean over the weights of all blocks' linears."""
        decoder = self._models[model].checkpoint.decoder
        linears = [each for i in range(decoder.num_layers) for each in decoder.linears(i)]
        weights = [linear.in_features * linear.out_features for linear in linears]
        bits = [treatment.bits_per_weight(linear.in_features) for linear in linears]
        return sum(n * b for n, b in zip(weights, bits, strict=True)) / sum(weights)

    def group_size(self, model: str) -> int:
        """The largest groups that every linear's input is a multiple of."""
        decoder = self._models[model].checkpoint.decoder
        return math.gcd(LARGEST_GROUP, *(linear.in_features for linear in decoder.linears(0)))

    def calibration_set(self, model: str, calibration: Calibration) -> CalibrationSet:
        """The tokens. Raises ConfigError where the source has too few."""
        source = self._models[model]
        return load_calibration(
            calibration.source,
            source.tokenizer,
            samples=calibration.samples,
            length=LENGTH,
            seed=calibration.seed,
            max_positions=source.context,
        )

    def recording(self, model: str, calibration: Calibration) -> list[RecordedBlock]:
        """Weights and statistics of every block."""
        key = (model, calibration)
        if key not in self._recordings:
            self._note(f"{model}: statistics of {calibration.samples} samples")
            drawn = self.calibration_set(model, calibration)
            self._recordings[key] = record(self._models[model].checkpoint, drawn, self._device)
        return self._recordings[key]

    def peaks(self, model: str, calibration: Calibration) -> Peaks:
        """max|x| of each linear's input in the unquantized model, by full name of the linear."""
        key = (model, calibration)
        if key not in self._peaks:
            self._note(f"{model}: peaks of {calibration.samples} samples")
            source, drawn = self._models[model], self.calibration_set(model, calibration)
            recorded = self.recording(model, calibration)
            source.replace([block.tensors for block in recorded], rounds_activations=False)

            def forward() -> None:
                for sample in drawn.ids.tolist():
                    for _ in source.logits(sample, len(sample) - 1):
                        pass

            self._peaks[key] = record_peaks(source.linears, forward)
        return self._peaks[key]

    def forget(self, calibration: Calibration) -> None:
        """Free the statistics of a calibration set; its measurements stay."""
        for model in self.models:
            self._recordings.pop((model, calibration), None)

    def measure(self, subject: Subject, texts: Sequence[Text]) -> dict[str, Measurement]:
        """Perplexity on each text, by its name, beside that of the unquantized model."""
        plain = Subject(subject.model, Treatment("none"), subject.calibration)
        found = {}
        for text, own in self._losses_of(subject, texts).items():
            found[text.name] = Measurement(
                perplexity=math.exp(np.concatenate(own).mean()),
                tokens=sum(map(len, own)),
                gap=_difference(own, self._losses_of(plain, [text])[text]),
            )
        return found

    def compare(self, one: Subject, other: Subject, texts: Sequence[Text]) -> dict[str, Difference]:
        """Perplexity of one minus that of the other, on each text by its name."""
        ours, theirs = self._losses_of(one, texts), self._losses_of(other, texts)
        return {text.name: _difference(ours[text], theirs[text]) for text in texts}

    def _losses_of(self, subject: Subject, texts: Sequence[Text]) -> dict[Text, list[Float64]]:
        """What was measured before is not measured again."""
        if not subject.treatment.is_calibrated:  # the same for all calibrations
            subject = replace(subject, calibration=self._main, propagate_error=False)
        missing = [text for text in texts if (subject, text) not in self._losses]
        if missing:
            self._note(f"{subject.model}: {describe(subject.treatment)}")
            self._models[subject.model].replace(
                self._blocks(subject), rounds_activations=subject.treatment.rounds_activations
            )
            for text in missing:
                self._losses[subject, text] = self._score(subject.model, text)
        return {text: self._losses[subject, text] for text in texts}

    def _blocks(self, subject: Subject) -> list[Tensors]:
        treatment = subject.treatment
        if subject.propagate_error:
            return treat_propagating(
                self._models[subject.model].checkpoint,
                self.calibration_set(subject.model, subject.calibration),
                self._device,
                lambda task, tensors, statistics: treat_block(treatment, task, tensors, statistics),
            )
        recorded = self.recording(subject.model, subject.calibration)
        peaks = None
        if treatment.method == "smoothquant":
            peaks = self.peaks(subject.model, subject.calibration)
        return [treat_block(treatment, b.task, b.tensors, b.statistics, peaks) for b in recorded]

    def _score(self, model: str, text: Text) -> list[Float64]:
        """Negative log-likelihoods of the scored tokens, window by window, in nats."""
        source = self._models[model]
        ids = tokenize(text.documents, source.tokenizer).first(self._max_tokens)
        if len(ids.ids) < 2 * self.window:
            raise ConfigError(
                f"{text.name} has {len(ids.ids)} tokens; a study scores at least two windows of "
                f"{self.window}: give a longer text"
            )
        found = []
        for part in windows(ids, self.window, self.stride):
            (rows,) = source.logits(part.inputs(ids.ids), part.first_row)  # one block a window
            found.append(negative_log_likelihoods(rows, part.targets(ids.ids)))
        return found


def describe(treatment: Treatment) -> str:
    """A treatment in a few words: "INT3 g128 awq"."""
    if treatment.method in UNCODED:
        return "16-bit" if treatment.method == "none" else treatment.method
    group = "row" if treatment.group_size is None else f"g{treatment.group_size}"
    scale = f" s={treatment.s:g}" if treatment.method == "awq-fixed-s" else ""
    return f"INT{treatment.bits} {group} {treatment.method}{scale}"


def _difference(one: list[Float64], other: list[Float64]) -> Difference:
    """Of two perplexities. one, other: negative log-likelihoods by window, of the same tokens."""
    ours, theirs = np.concatenate(one), np.concatenate(other)
    perplexity = math.exp(ours.mean())
    # Tokens of one window are not independent, windows nearly: the error is that over windows.
    sums = np.array([a.sum() - b.sum() for a, b in zip(one, other, strict=True)])
    spread = float(sums.std(ddof=1)) * math.sqrt(len(sums)) / len(ours)
    return Difference(
        value=perplexity - math.exp(theirs.mean()), standard_error=perplexity * spread
    )
