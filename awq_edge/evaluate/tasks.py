"""`awq-edge eval tasks` as a call: benchmark tasks by lm-evaluation-harness. Needs [eval]."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from awq_edge.artifacts.paths import user_path
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.errors import AwqEdgeError, ConfigError
from awq_edge.evaluate.logits_models import EvaluatedModel
from awq_edge.evaluate.task_model import open_task_model

if TYPE_CHECKING:
    from awq_edge.evaluate.harness import HarnessModel, TaskProgress

# The harness's own default: which examples a few-shot prompt has depends on it.
DEFAULT_SEED = 1234
# Resamples for the standard errors that have no formula: 1,000 give them to some 2 %.
_BOOTSTRAP = 1000


class MetricResult(Record):
    """One metric."""

    metric: str
    filter: str  # the extraction of the answer, "none" where there is none
    value: float | None
    standard_error: float | None  # None where the metric has none or one sample was evaluated
    higher_is_better: bool | None


class TaskResult(Record):
    """One task, or a group with the mean of its tasks."""

    name: str
    kind: Literal["task", "group"]
    version: str | None  # of the task's definition
    n_shot: int | None  # examples in the prompt
    samples: int  # documents evaluated
    samples_available: int | None  # of the task's split, None for a group
    metrics: tuple[MetricResult, ...]


class TasksReport(Manifest):
    """The report of `awq-edge eval tasks`."""

    format: Literal["awq-edge-tasks"] = "awq-edge-tasks"
    format_version: Literal[1] = 1
    tasks: tuple[str, ...]  # as asked for
    results: tuple[TaskResult, ...]
    # limit, num_fewshot: as given, None for the tasks' own
    limit: int | None
    num_fewshot: int | None
    chat_template: bool
    context: int  # tokens of prompt and answer
    batch_size: int
    seed: int
    truncated_requests: int  # prompts whose beginning did not fit it
    warnings: tuple[str, ...]  # the harness's
    seconds: float  # evaluation, without loading
    model: EvaluatedModel
    versions: dict[str, str]
    commit: str | None


def evaluate_tasks(
    target: str | Path,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    allow_code_execution: bool = False,
    context: int | None = None,
    batch_size: int = 1,
    seed: int = DEFAULT_SEED,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    allow_unknown_keys: bool = False,
    verify: bool = True,
    progress: TaskProgress | None = None,
) -> TasksReport:
    """Evaluate a bundle, a checkpoint or a model on tasks of lm-evaluation-harness.

    tasks, include_path, allow_code_execution: see `load_tasks`.
    limit: documents of each task, the first ones.
    num_fewshot: examples in the prompt, where the task does not forbid any.
    apply_chat_template: prompts as messages.
    seed: draws examples and sampled answers.
    context, batch_size, device, dtype, threads, allow_unknown_keys, verify: see `open_task_model`.
    Raises ConfigError for impossible choices and for tasks that cannot be loaded or run, and the
    errors of loading the model.
    """
    from awq_edge.evaluate.harness import HarnessModel
    from awq_edge.evaluate.harness_environment import harness_environment
    from awq_edge.evaluate.task_files import load_tasks

    names = [name.strip() for name in tasks if name.strip()]
    _check(names, limit, num_fewshot, seed)
    folder = None if include_path is None else user_path(include_path, "--include-path")
    with harness_environment(allow_code_execution=allow_code_execution) as warnings:
        random.seed(seed)  # tasks that shuffle their data use the global generators
        np.random.seed(seed)
        loaded = load_tasks(names, include_path=folder, allow_code_execution=allow_code_execution)
        warnings += _set_fewshot(loaded["tasks"], num_fewshot, seed)
        model = open_task_model(
            str(target),
            context=context,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            threads=threads,
            allow_unknown_keys=allow_unknown_keys,
            verify=verify,
        )
        try:
            harness = HarnessModel(model, seed=seed, progress=progress)
            if apply_chat_template:
                harness.require_chat_template()
            start = time.perf_counter()
            raw = _run(harness, loaded, limit, apply_chat_template, allow_code_execution)
            seconds = time.perf_counter() - start
            return TasksReport(
                tasks=tuple(names),
                results=_results(raw, loaded),
                limit=limit,
                num_fewshot=num_fewshot,
                chat_template=apply_chat_template,
                context=model.context,
                batch_size=batch_size,
                seed=seed,
                truncated_requests=harness.truncated,
                warnings=tuple(warnings),
                seconds=seconds,
                model=model.info,
                versions=versions(("lm-eval", "datasets", "numpy", "tokenizers", *model.packages)),
                commit=source_commit(),
            )
        finally:
            model.close()


def _check(names: Sequence[str], limit: int | None, num_fewshot: int | None, seed: int) -> None:
    if not names:
        raise ConfigError("--tasks: names no task; give one or more, separated by commas")
    for flag, value, least in (
        ("--limit", limit, 1),
        ("--num-fewshot", num_fewshot, 0),
        ("--seed", seed, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: must be {least} or more")


def _set_fewshot(tasks: dict[str, Any], num_fewshot: int | None, seed: int) -> list[str]:
    """Set the examples of each task, by the harness's own rules. Returns warnings for the user."""
    notes = []
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if num_fewshot is None:
            if own is None:
                task.set_config("num_fewshot", 0)
        elif own == 0 and num_fewshot != 0:
            notes.append(f"{name}: its definition forbids examples: --num-fewshot does not apply")
        else:
            task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return notes


def _run(
    harness: HarnessModel,
    loaded: dict[str, Any],
    limit: int | None,
    apply_chat_template: bool,
    allow_code_execution: bool,
) -> Any:
    """The harness's EvalResults."""
    from lm_eval.evaluator import evaluate

    try:
        return evaluate(
            lm=harness,
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
            confirm_run_unsafe_code=allow_code_execution,
        )
    except AwqEdgeError:
        raise
    except Exception as error:  # of any kind: templates and metrics are the tasks' own code
        text = " ".join(str(error).split())
        raise ConfigError(
            f"lm-eval stopped with {type(error).__name__}: {text}; run again with --debug to see "
            "where, most often in a task's own file"
        ) from error


def _results(raw: Any, loaded: dict[str, Any]) -> tuple[TaskResult, ...]:
    groups = set(loaded.get("groups", {}))
    results = []
    for name, figures in raw["results"].items():
        version = raw["versions"].get(name)
        results.append(
            TaskResult(
                name=name,
                kind="group" if name in groups else "task",
                version=None if version is None else str(version),
                n_shot=raw["n-shot"].get(name),
                samples=int(figures.get("sample_len", 0)),
                samples_available=raw["n-samples"].get(name, {}).get("original"),
                metrics=_metrics(figures, raw["higher_is_better"].get(name, {})),
            )
        )
    return tuple(results)


def _metrics(figures: dict[str, Any], higher_is_better: dict[str, Any]) -> tuple[MetricResult, ...]:
    """The harness's "acc,none" and "acc_stderr,none", side by side."""
    parts = []
    for key, value in figures.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        parts.append(
            MetricResult(
                metric=metric,
                filter=filter_name,
                value=_number(value),
                standard_error=_number(figures.get(f"{metric}_stderr,{filter_name}")),
                higher_is_better=higher_is_better.get(metric),
            )
        )
    return tuple(parts)


def _number(value: Any) -> float | None:
    """A finite number, or None for a value that JSON does not have ("N/A", nan)."""
    if isinstance(value, str) or value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
