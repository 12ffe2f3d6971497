"""`awq-edge run` as a call: load a bundle, generate once, report time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from awq_edge.artifacts.sampling_keys import SamplingKeys
from awq_edge.errors import ConfigError
from awq_edge.run.build import build_run_report
from awq_edge.run.report import RunReport
from awq_edge.runtime.generation import Request, ThoughtRules
from awq_edge.runtime.memory import read_process_memory
from awq_edge.runtime.model import ChatOptions, Model, load
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.template_process import warm_up

PromptFormat = Literal["auto", "raw", "chat"]
# Tokens that are generated when no number is asked for, or as many as fit.
DEFAULT_NEW_TOKENS = 128


def run(
    bundle: str | Path,
    prompt: str,
    *,
    prompt_format: PromptFormat = "auto",
    max_new_tokens: int | None = None,
    sampling: Sampling | SamplingKeys | None = None,
    sample: bool = False,
    seed: int | None = None,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    chat_template: str | Path | None = None,
    variables: Mapping[str, Any] | None = None,
    context: int | None = None,
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
    on_thought: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    observer: Callable[[float, str], None] | None = None,
) -> RunReport:
    """Load a bundle, generate once, and return the report.

    prompt_format: "raw" sends the text as it is, "chat" as a user's message through the model's
        chat template, "auto" the latter where there is one.
    max_new_tokens: None means 128, or to the end of the context where fewer fit.
    sampling: None is greedy.
    sample: draw by the bundle's own sampling keys, as chat and serve do; keys in `sampling` replace
        them. Keys that only matter where tokens are drawn (top_k, top_p, min_p without a
        temperature) turn this on too.
    on_text: called with every delta of the answer.
    on_thought: called with those of the thoughts.
    chat_template: a file in place of the model's own.
    variables: of the chat template, beside the message.
    cancelled: asked before every step; the report then ends there.
    observer: see `load`.
    Raises the errors of `load` and `Model.stream`.
    """
    if not prompt:
        raise ConfigError("the prompt is empty; give --prompt some text")
    if prompt_format != "raw":
        warm_up()
    with load(
        bundle, context=context, threads=threads, chat_template=chat_template, observer=observer
    ) as model:
        has_template = model.chat_template is not None
        chat = has_template if prompt_format == "auto" else prompt_format == "chat"
        stops = frozenset() if ignore_eos else model.stop_token_ids
        started = time.perf_counter()
        thoughts: ThoughtRules | None = None
        ends: tuple[str, ...] = ()
        if chat:
            options = ChatOptions(variables)
            made = model.chat_prompt([{"role": "user", "content": prompt}], options)
            ids, thoughts = made.ids, made.thoughts
            ends = () if ignore_eos else model.turn_end_texts
        else:
            ids = model.prompt_ids(prompt)
        room = model.session.context - len(ids) + 1
        if max_new_tokens is None and room >= DEFAULT_NEW_TOKENS:
            max_new_tokens = DEFAULT_NEW_TOKENS
        request = Request(
            prompt_ids=ids,
            max_new_tokens=max_new_tokens,
            sampling=_sampling(model, sampling or SamplingKeys(), sample, seed),
            stop=(*stop, *ends),
            stop_token_ids=stops,
            cancelled=cancelled,
            thoughts=thoughts,
        )
        stream = model.stream_request(request, started=started)
        for piece in stream.pieces():
            show = on_thought if piece.thought else on_text
            if show is not None:
                show(piece.text)
        after = read_process_memory()
        # Measured behind the run: its buffers must not count as the run's memory.
        measured = model.session.measure_bandwidth()
        return build_run_report(
            model,
            request,
            stream.result,
            prompt=prompt,
            prompt_format="chat" if chat else "raw",
            after=after,
            device_bandwidth=measured,
            bandwidth_source="measured",
        )


def _sampling(
    model: Model, asked: Sampling | SamplingKeys, sample: bool, seed: int | None
) -> Sampling:
    if isinstance(asked, Sampling):
        return asked if seed is None else replace(asked, seed=seed)
    filters = (asked.top_k, asked.top_p, asked.min_p)
    if sample or (asked.temperature is None and any(key is not None for key in filters)):
        asked = asked.over(model.sampling)
    return Sampling.of(asked, seed)
