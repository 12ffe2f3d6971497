"""The experiments: which treatments each one measures, on which calibration and texts.

Each gives its rows in the order of its table; all of them run on every variant of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from awq_edge.quantizer.search.rounding import NumberFormat, fake_quantize, ranges
from experiments.result import CalibrationInfo, Row, ScaleEffect
from experiments.treatments import (
    UNCODED,
    Method,
    Treatment,
    chosen_channels,
    fixed_scale,
    number_format,
)
from experiments.workbench import LARGEST_GROUP, Calibration, Subject, Text, Workbench

# Draws of the channels that mixed-random keeps.
RANDOM_SEEDS = (0, 1, 2)
COMPARED: tuple[Method, ...] = (
    "rtn",
    "mixed-activation",
    "mixed-weight",
    "mixed-random",
    "awq-scale",
    "awq-clip",
    "awq",
    "gptq",
    "awq+gptq",
)
_PUBLIC: tuple[Method, ...] = ("rtn", "awq", "gptq", "awq+gptq")  # those of `quantize`
_SEARCHED: tuple[Method, ...] = _PUBLIC[1:]
FIXED_S = (1.0, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0)  # the paper's table 2, and two beyond it
GROUP_SIZES = (32, 64, LARGEST_GROUP, None)
SAMPLES = (4, 8, 16, 32, 64, 128)
# Of `salience`: what protects channels, and formats to compare with.
PROTECTED: tuple[Method, ...] = (
    "rtn",
    "mixed-activation",
    "mixed-weight",
    "mixed-random",
    "awq-fixed-s",
    "awq",
    "gptq",
    "awq+gptq",
    "nf4",
    "w8a8",
    "smoothquant",
)
SALIENT_S = (1.25, 1.5, 2.0, 4.0)
# Small calibration sets are drawn three times: one draw says little.
DRAWS = {4: (0, 1, 2), 8: (0, 1, 2), 16: (0, 1, 2)}


@dataclass(frozen=True)
class Inputs:
    """calibrations: the first is the one that every experiment but calibration-domain uses."""

    held_out: Text
    text: Text | None
    calibrations: tuple[Calibration, ...]

    @property
    def texts(self) -> list[Text]:
        return [self.held_out] if self.text is None else [self.held_out, self.text]


Rows = Iterator[Row]
Run = Callable[[Workbench, Inputs], Rows]


def methods(bench: Workbench, inputs: Inputs) -> Rows:
    """Every method at INT3 and INT4, groups of 128 (the paper's tables 1, 3 and 4)."""
    for model in bench.models:
        yield _row(bench, inputs, model, Treatment("none"))
        for bits in (4, 3):
            for method in COMPARED:
                seeds = RANDOM_SEEDS if method == "mixed-random" else (0,)
                for seed in seeds:
                    yield _row(bench, inputs, model, Treatment(method, bits, seed=seed))
        yield _row(bench, inputs, model, Treatment("nf4"))


def salience(bench: Workbench, inputs: Inputs) -> Rows:
    """What it gains to protect 1 % of the channels, INT3 in the largest groups that fit the model:
    the paper's argument in one table, beside formats that other papers compare with."""
    for model in bench.models:
        yield _row(bench, inputs, model, Treatment("none"))
        for method in PROTECTED:
            plain = Treatment(method, 3, bench.group_size(model))
            for seed in RANDOM_SEEDS if method == "mixed-random" else (0,):
                for s in SALIENT_S if method == "awq-fixed-s" else (1.0,):
                    yield _row(bench, inputs, model, replace(plain, seed=seed, s=s))


def fixed_s(bench: Workbench, inputs: Inputs) -> Rows:
    """One s for the salient channels, INT3, groups of 128 (the paper's table 2)."""
    for model in bench.models:
        for s in FIXED_S:
            treatment = Treatment("awq-fixed-s", 3, s=s)
            row = _row(bench, inputs, model, treatment)
            effect = scale_effect(bench, model, inputs.calibrations[0], treatment)
            yield row.model_copy(update={"effect": effect})


def group_size(bench: Workbench, inputs: Inputs) -> Rows:
    """Groups of 32, 64, 128 and whole rows."""
    for model in bench.models:
        for bits in (4, 3):
            for size in GROUP_SIZES:
                for method in _PUBLIC[:2]:
                    yield _row(bench, inputs, model, Treatment(method, bits, size))


def int2(bench: Workbench, inputs: Inputs) -> Rows:
    """Two bits, groups of 128 and 64; the paper puts AWQ in front of GPTQ there."""
    for model in bench.models:
        for size in (128, 64):
            for method in _PUBLIC:
                yield _row(bench, inputs, model, Treatment(method, 2, size))


def calibration_size(bench: Workbench, inputs: Inputs) -> Rows:
    """INT3, groups of 128, calibrated on 4 to 128 samples (the paper's figure 8a)."""
    for model in bench.models:
        for samples in SAMPLES:
            for seed in DRAWS.get(samples, (0,)):
                calibration = replace(inputs.calibrations[0], samples=samples, seed=seed)
                for method in _SEARCHED[:2]:
                    yield _row(bench, inputs, model, Treatment(method, 3), calibration)
                if calibration != inputs.calibrations[0]:
                    bench.forget(calibration)


def calibration_domain(bench: Workbench, inputs: Inputs) -> Rows:
    """INT3, groups of 128, calibrated on one text or another (the paper's figure 8b)."""
    first, *others = inputs.calibrations
    for model in bench.models:
        for method in _SEARCHED[:2]:
            treatment = Treatment(method, 3)
            own = Subject(model, treatment, first)
            yield _row(bench, inputs, model, treatment, texts=inputs.texts)
            for calibration in others:
                row = _row(bench, inputs, model, treatment, calibration, texts=inputs.texts)
                other = Subject(model, treatment, calibration)
                yield row.model_copy(
                    update={
                        "against": f"calibrated on {first.label}",
                        "differences": bench.compare(other, own, inputs.texts),
                    }
                )
    for calibration in others:
        bench.forget(calibration)


def propagation(bench: Workbench, inputs: Inputs) -> Rows:
    """Calibrating later blocks on the outputs of unquantized ones, or of quantized ones."""
    calibration = inputs.calibrations[0]
    for model in bench.models:
        for bits in (4, 3):
            for method in _SEARCHED:
                treatment = Treatment(method, bits)
                without = Subject(model, treatment, calibration)
                yield _row(bench, inputs, model, treatment)
                propagated = replace(without, propagate_error=True)
                row = _row(bench, inputs, model, treatment, propagate_error=True)
                yield row.model_copy(
                    update={
                        "against": "without propagation",
                        "differences": bench.compare(propagated, without, [inputs.held_out]),
                    }
                )


EXPERIMENTS: Mapping[str, Run] = {
    "methods": methods,
    "salience": salience,
    "fixed-s": fixed_s,
    "group-size": group_size,
    "int2": int2,
    "calibration-size": calibration_size,
    "calibration-domain": calibration_domain,
    "propagation": propagation,
}


# Experiments that take the largest groups that fit the model.
ANY_GROUP = ("salience",)


def scale_effect(
    bench: Workbench, model: str, calibration: Calibration, treatment: Treatment
) -> ScaleEffect:
    """What the s of a fixed-s treatment does to scales and errors, over all linears."""
    groups, changed, ratios = 0, 0.0, 0.0
    errors = torch.zeros(2, 2, dtype=torch.float64)  # [s, 1] x [salient, others]
    peaks: list[float] = []
    for block in bench.recording(model, calibration):
        means = [inputs.mean_abs for inputs in block.statistics.values()]
        peaks += [float(mean.max() / mean.median()) for mean in means]
        for name in (n for group in block.task.groups for n in block.task.members(group)):
            weight = block.tensors[f"{name}.weight"]
            mean_abs = block.statistics[block.task.input_of[name]].mean_abs
            form = number_format(treatment, weight.shape[1])
            scale = fixed_scale(treatment, weight, mean_abs)
            plain, scaled = (_steps(w, form) for w in (weight, weight * scale))
            groups += plain.numel()
            changed += float((plain != scaled).sum())
            ratios += float((scaled.double() / plain.double()).sum())
            salient = chosen_channels(treatment, name, weight, mean_abs)
            for index, s in enumerate((scale, torch.ones_like(scale))):
                error = fake_quantize(weight * s, form).div_(s).sub_(weight).double().square()
                errors[index, 0] += error[:, salient].sum().cpu()
                errors[index, 1] += error.sum().cpu() - error[:, salient].sum().cpu()
    root = (errors[0] / errors[1]).sqrt()
    return ScaleEffect(
        changed_groups=changed / groups,
        scale_ratio=ratios / groups,
        expected_error_ratio=ratios / groups / treatment.s,
        salient_error_ratio=float(root[0]),
        other_error_ratio=float(root[1]),
        activation_peaks=(min(peaks), max(peaks)),
    )


def _steps(weight: torch.Tensor, form: NumberFormat) -> torch.Tensor:
    """The scale of each group as it is stored: float16 [out, in / group]."""
    return ranges(weight, form, None)[1]


def _row(
    bench: Workbench,
    inputs: Inputs,
    model: str,
    treatment: Treatment,
    calibration: Calibration | None = None,
    *,
    texts: Sequence[Text] | None = None,
    propagate_error: bool = False,
) -> Row:
    """Measure one treatment; on the held-out text and the first calibration unless told."""
    used = calibration or inputs.calibrations[0]
    subject = Subject(model, treatment, used, propagate_error)
    method = treatment.method
    is_coded = method not in UNCODED
    has_share = method.startswith("mixed-") or method == "awq-fixed-s"
    return Row(
        model=model,
        method=method,
        bits=treatment.bits if is_coded else None,
        group_size=treatment.group_size if is_coded else None,
        share=treatment.share if has_share else None,
        s=treatment.s if method == "awq-fixed-s" else None,
        seed=treatment.seed if method == "mixed-random" else None,
        bits_per_weight=bench.bits_per_weight(model, treatment),
        calibration=CalibrationInfo(source=used.label, samples=used.samples, seed=used.seed)
        if treatment.is_calibrated
        else None,
        propagate_error=propagate_error,
        texts=bench.measure(subject, texts or [inputs.held_out]),
    )
