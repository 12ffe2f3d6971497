"""Finding and loading the tasks of lm-evaluation-harness: its own, and files of the user's."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.artifacts.input_files import require_plain
from awq_edge.errors import ConfigError


def load_tasks(
    names: Sequence[str], *, include_path: Path | None, allow_code_execution: bool
) -> dict[str, Any]:
    """The harness's task objects with their data, as `TaskManager.load` returns them.

    names: tasks, groups, tags, or patterns of them (mmlu_*).
    include_path: a folder of task files (YAML), which go before the harness's own of the same name.
    Raises ConfigError for a name that is no task, a task that runs code unless
    allow_code_execution, and one whose file or data cannot be loaded.
    """
    manager, registered = _find(names, include_path)
    unsafe = sorted({part.name for part in _parts(manager, registered) if part.unsafe})
    if unsafe and not allow_code_execution:
        raise _code_refused(unsafe)
    try:
        loaded: dict[str, Any] = manager.load(registered)
    except Exception as error:  # of any kind: data sets, YAML, and the tasks' own Python code
        text = " ".join(str(error).split())
        raise ConfigError(
            f"--tasks {','.join(names)}: cannot be loaded: {type(error).__name__}: {text}; data "
            "sets come from the model hub or from its cache on this machine (HF_HOME), those of "
            "--include-path tasks from where their data_files point"
        ) from error
    # Tasks that only say so when they are loaded.
    unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe and not allow_code_execution:
        raise _code_refused(unsafe)
    return loaded


def _find(names: Sequence[str], include_path: Path | None) -> tuple[Any, list[str]]:
    """The harness's TaskManager, and the registered names that `names` stand for."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not include_path.is_dir():
            raise ConfigError(f"--include-path {include_path}: is not a directory")
        for file in include_path.rglob("*.y*ml"):  # the harness would wait for a pipe's writer
            require_plain(file, ConfigError)
        # Reading the harness's 14,000 files takes many seconds: only where they are needed.
        local = TaskManager(include_path=str(include_path), include_defaults=False)
        matches = [local.match_tasks([name]) for name in names]
        parts = {part.name for part in _parts(local, _once(matches))}
        if all(matches) and parts <= set(local.all_tasks):
            return local, _once(matches)
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    matches = [manager.match_tasks([name]) for name in names]
    for name, of_name in zip(names, matches, strict=True):
        if not of_name:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ConfigError(
                f"--tasks {name}: lm-eval has no such task; {hint}its own tasks are in the folder "
                "lm_eval/tasks, yours in --include-path DIR"
            )
    return manager, _once(matches)


def _once(matches: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for of_name in matches for name in of_name))


@dataclass(frozen=True)
class _TaskEntry:
    """A task by its name. unsafe: its file says that it runs code."""

    name: str
    unsafe: bool


def _parts(manager: Any, names: Sequence[str]) -> Iterator[_TaskEntry]:
    """The tasks that registered names stand for, as their files say before any of their code is
    executed; a name that is not registered stands for itself."""
    for name in names:
        entry = manager.task_index.get(name)
        content = (entry.cfg if entry else None) or {}
        if name in manager.all_tags:
            yield from _parts(manager, sorted(entry.tags))
        elif name in manager.all_groups:
            yield from _group_entries(manager, name, content.get("task", ()))
        else:
            yield _TaskEntry(name, bool(content.get("unsafe_code")))


def _group_entries(manager: Any, group: str, parts: Any) -> Iterator[_TaskEntry]:
    """The tasks of a group's list, which has names, and tasks and groups written out."""
    for part in [parts] if isinstance(parts, str | dict) else parts:
        if isinstance(part, str):
            if part != group:
                yield from _parts(manager, [part])
        elif part.get("unsafe_code"):
            yield _TaskEntry(str(part.get("task", group)), True)
        else:
            yield from _group_entries(manager, group, part.get("task", ()))


def _code_refused(names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"--tasks {','.join(names)}: would run the code that the model writes, on this machine and "
        "with your rights; do it where that can do no harm (a container without your files and the "
        "network), and say so with --allow-code-execution"
    )
