"""From a request to what the token loop needs: ids, sampling, limits. Refuses what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from awq_edge.errors import ConfigError
from awq_edge.runtime.chat_template import Message
from awq_edge.runtime.model import Model
from awq_edge.runtime.sampling import Sampling
from awq_edge.serve.api_error import ApiError, GrammarError, invalid
from awq_edge.serve.limits import Limits
from awq_edge.serve.schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponseFormat,
)

Api = Literal["completions", "chat"]
# Checks a JSON schema and gives the grammar of it; raises GrammarError.
GrammarOf = Callable[[dict[str, object]], str]

# What the OpenAI API generates where a completion names no number.
_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Task:
    """One generation. max_new_tokens: None means to the end of the context.

    grammar: of the answer, as `grammar_of` made it. top_logprobs: None where none were asked for.
    """

    api: Api
    prompt_ids: tuple[int, ...]
    max_new_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    grammar: str | None
    top_logprobs: int | None
    stream: bool
    include_usage: bool


def completion_task(
    model: Model, request: CompletionRequest, limits: Limits, grammar_of: GrammarOf
) -> Task:
    """Raises ApiError."""
    prompt = request.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise invalid(
                f"{len(prompt)} prompts in one request are not supported; send them one by one",
                "prompt",
                "unsupported_parameter",
            )
        (prompt,) = prompt
    if isinstance(prompt, str):
        ids = _encode(model, prompt, "prompt")
    else:
        ids = [i for i in prompt if isinstance(i, int)]
        if ids and not (0 <= min(ids) and max(ids) < model.session.vocab_size):
            raise invalid(
                f"token ids {min(ids)} to {max(ids)} are not all within the vocabulary of "
                f"{model.session.vocab_size}",
                "prompt",
            )
    wanted = request.max_tokens
    if wanted is None:
        wanted = min(_COMPLETION_TOKENS, limits.max_new_tokens or _COMPLETION_TOKENS)
    return _task(model, request, "completions", ids, wanted, request.logprobs, limits, grammar_of)


def chat_task(model: Model, request: ChatRequest, limits: Limits, grammar_of: GrammarOf) -> Task:
    """Raises ApiError."""
    if model.chat_template is None:
        raise invalid(
            "this model has no chat template (it is not a chat model); use /v1/completions",
            "messages",
            "no_chat_template",
        )
    try:
        rendered = model.render([_plain(message) for message in request.messages])
        ids = model.tokenizer.encode(rendered, add_special_tokens=False)
    except ConfigError as error:
        raise invalid(str(error), "messages") from None
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and older is not None and newer != older:
        raise invalid(
            f"max_tokens is {older} and max_completion_tokens {newer}; send one of them",
            "max_tokens",
        )
    top = request.top_logprobs
    if top is not None and not request.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = (top or 0) if request.logprobs else None
    wanted = older if newer is None else newer
    return _task(model, request, "chat", ids, wanted, logprobs, limits, grammar_of)


def _task(
    model: Model,
    request: GenerationRequest,
    api: Api,
    ids: list[int],
    wanted: int | None,
    top_logprobs: int | None,
    limits: Limits,
    grammar_of: GrammarOf,
) -> Task:
    options = request.stream_options
    if options is not None and not request.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if "" in stop:
        raise invalid("a stop string is empty; leave it out", "stop")
    return Task(
        api=api,
        prompt_ids=tuple(ids),
        max_new_tokens=_fitting(model, api, ids, wanted, limits),
        sampling=_sampling(request),
        stop=tuple(stop),
        grammar=_grammar(request.response_format, grammar_of),
        top_logprobs=top_logprobs,
        stream=bool(request.stream),
        include_usage=options is not None and options.include_usage,
    )


def _fitting(
    model: Model, api: Api, ids: list[int], wanted: int | None, limits: Limits
) -> int | None:
    """Tokens to generate at most; raises ApiError where prompt and answer exceed a limit."""
    param = "messages" if api == "chat" else "prompt"
    if not ids:
        raise invalid("the prompt is empty; send at least one token of text", param)
    context, most = model.session.context, limits.max_new_tokens
    if most is not None and wanted is not None and wanted > most:
        raise invalid(f"max_tokens is {wanted}; this server generates at most {most}", "max_tokens")
    room = context - len(ids) + 1  # the last generated token needs no place in the cache
    if room < (wanted or 1):
        raise ApiError(
            400,
            f"this model's context holds {context} tokens; the request has {len(ids)} in its "
            f"{param} and asks for {wanted or 1} more: shorten one of them",
            param=param,
            code="context_length_exceeded",
        )
    if wanted is None and most is not None and most <= room:
        return most
    return wanted


def _sampling(request: GenerationRequest) -> Sampling:
    """The API's own defaults: temperature 1, no filters."""
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=request.top_k or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        seed=request.seed,
    )


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


def _encode(model: Model, text: str, param: str) -> list[int]:
    try:
        return model.tokenizer.encode(text)
    except ConfigError as error:
        raise invalid(str(error), param) from None


def _plain(message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": role, "content": text}
