"""From a request to what the token loop needs: ids, sampling, limits. Refuses what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from awq_edge.artifacts.sampling_keys import SamplingKeys
from awq_edge.errors import ConfigError, ModelError
from awq_edge.runtime.generation import ThoughtRules
from awq_edge.runtime.model import ChatOptions, Model
from awq_edge.runtime.sampling import Sampling
from awq_edge.serve.api_error import ApiError, GrammarError, invalid
from awq_edge.serve.limits import Limits
from awq_edge.serve.schema import (
    UNLIMITED_TOKENS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponseFormat,
)

Api = Literal["completions", "chat"]
# Checks a JSON schema and gives the grammar of it; raises GrammarError.
GrammarOf = Callable[[dict[str, object]], str]

# The OpenAI API's default for a completion.
_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Task:
    """One generation."""

    api: Api
    prompt_ids: tuple[int, ...]
    max_new_tokens: int | None  # None: to the end of the context
    sampling: Sampling
    stop: tuple[str, ...]
    grammar: str | None  # of the answer, made by `grammar_of`
    top_logprobs: int | None  # None where none were asked for
    stream: bool
    include_usage: bool
    stop_token_ids: frozenset[int] = frozenset()  # beside the model's own
    thoughts: ThoughtRules | None = None  # how they are told from the answer


@dataclass(frozen=True)
class TaskSettings:
    """Settings that all requests of one server share."""

    limits: Limits
    sampling: SamplingKeys  # keys that a request may replace
    grammar_of: GrammarOf
    # of the chat template, which a request may replace
    variables: Mapping[str, Any] = field(default_factory=dict)


def completion_task(model: Model, request: CompletionRequest, settings: TaskSettings) -> Task:
    """The task of a completion. Raises ApiError."""
    prompt = request.prompt
    if isinstance(prompt, str):
        ids = _encode(model, prompt, request.add_special_tokens is not False)
    else:
        ids = prompt
        if ids and not (0 <= min(ids) and max(ids) < model.session.vocab_size):
            raise invalid(
                f"token ids {min(ids)} to {max(ids)} are not all within the vocabulary of "
                f"{model.session.vocab_size}",
                "prompt",
            )
    wanted = request.max_tokens
    if wanted is None:
        wanted = _COMPLETION_TOKENS
    return _task(model, request, "completions", ids, wanted, request.logprobs, settings)


def chat_task(model: Model, request: ChatRequest, settings: TaskSettings) -> Task:
    """The task of a chat. Raises ApiError."""
    if model.chat_template is None:
        raise invalid(
            "this model has no chat template (it is not a chat model); use /v1/completions",
            "messages",
            "no_chat_template",
        )
    options = ChatOptions(
        {**settings.variables, **request.variables()},
        request.continue_final_message,
        request.add_generation_prompt,
    )
    try:
        prompt = model.chat_prompt([message.plain() for message in request.messages], options)
    except ConfigError as error:
        raise invalid(str(error), "messages") from None
    except ModelError as error:
        raise invalid(str(error), "messages", "broken_chat_template") from None
    newer, older = request.max_completion_tokens, request.max_tokens
    asked = {tokens for tokens in (newer, older) if tokens not in (None, UNLIMITED_TOKENS)}
    if len(asked) > 1:
        raise invalid(
            f"max_tokens is {older} and max_completion_tokens {newer}; send one of them",
            "max_tokens",
        )
    top = request.top_logprobs
    if top and not request.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = (top or 0) if request.logprobs else None
    wanted = next(iter(asked), None)
    task = _task(model, request, "chat", prompt.ids, wanted, logprobs, settings)
    return replace(task, thoughts=prompt.thoughts)


def _task(
    model: Model,
    request: GenerationRequest,
    api: Api,
    ids: list[int],
    wanted: int | None,
    top_logprobs: int | None,
    settings: TaskSettings,
) -> Task:
    options = request.stream_options
    if options is not None and not request.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    return Task(
        api=api,
        prompt_ids=tuple(ids),
        max_new_tokens=_fitting(model, api, ids, wanted, settings.limits),
        sampling=Sampling.of(request.sampling().over(settings.sampling), request.seed),
        stop=tuple(request.stop or ()),
        grammar=_grammar(request.response_format, settings.grammar_of),
        top_logprobs=top_logprobs,
        stream=bool(request.stream),
        include_usage=options is not None and options.include_usage,
        stop_token_ids=frozenset(request.stop_token_ids or ()),
    )


def _fitting(
    model: Model, api: Api, ids: list[int], wanted: int | None, limits: Limits
) -> int | None:
    """Tokens to generate at most: the request's number, cut to the limit and to the room that the
    prompt leaves. Raises ApiError where it leaves none."""
    param = "messages" if api == "chat" else "prompt"
    if not ids:
        raise invalid("the prompt is empty; send at least one token of text", param)
    context = model.session.context
    room = context - len(ids) + 1  # the last generated token needs no place in the cache
    if room < 1:
        raise ApiError(
            400,
            f"this model's context holds {context} tokens; the request has {len(ids)} in its "
            f"{param}: shorten it",
            param=param,
            code="context_length_exceeded",
        )
    asked = [limit for limit in (wanted, limits.max_new_tokens) if limit is not None]
    most = min(asked, default=room)
    return None if most >= room else most


def _grammar(wanted: ResponseFormat | None, grammar_of: GrammarOf) -> str | None:
    if wanted is None or wanted.type == "text":
        return None
    schema: dict[str, object] = {"type": "object"}
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise invalid(
                "response_format of type json_schema has no json_schema", "response_format"
            )
        schema = wanted.json_schema.schema_
    try:
        return grammar_of(schema)
    except GrammarError as error:
        raise invalid(str(error), "response_format", "invalid_schema") from None


def _encode(model: Model, text: str, add_special_tokens: bool) -> list[int]:
    try:
        return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except ConfigError as error:
        raise invalid(str(error), "prompt") from None
