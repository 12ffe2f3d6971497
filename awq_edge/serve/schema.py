"""Request bodies: what is taken, and what is refused where ignoring it would change the answer."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from awq_edge.serve.api_error import ApiError, invalid

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20  # of a chat completion
MAX_LOGPROBS = 5  # of a completion
_LARGEST_SEED = 2**63 - 1

# Parameters of the OpenAI API that are not built, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
# Parameters that never change an answer of this server.
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
# What an assistant's message of this or another server may carry and say nothing with.
_EMPTY_IN_MESSAGE = (
    "name",
    "refusal",
    "tool_calls",
    "function_call",
    "audio",
    "annotations",
    "tool_call_id",
)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Body):
    """include_usage: a last chunk with the counts of tokens. include_obfuscation: has no effect."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class JsonSchema(_Body):
    """name, description and strict have no effect: the schema is always kept to."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Body):
    """What the answer must be: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(_Body):
    """What both APIs have. top_k, min_p and repetition_penalty are not OpenAI's."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. prompt: a text or token ids, or a list of one of these."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class TextPart(_Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message. developer is another word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions. max_completion_tokens: max_tokens by its newer name."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


R = TypeVar("R", bound=GenerationRequest)


def parse(body: bytes, model: type[R]) -> R:
    """The request in a body. Raises ApiError, status 400, that names what is wrong with it."""
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise invalid(f"the body must be a JSON object, not {type(data).__name__}")
    kept = _without_neutral(data)
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_message(m, i) for i, m in enumerate(kept["messages"])]
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        raise _refusal(error) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _without_neutral(data: dict[str, Any]) -> dict[str, Any]:
    """The parameters that ask for something. Raises ApiError for what is not built."""
    for name, values in _NEUTRAL.items():
        value = data.get(name)
        if value is not None and value not in values:
            only = " or ".join(json.dumps(v) for v in values)
            raise invalid(
                f"{name} is not supported; leave it out" + (f", or send {only}" if only else ""),
                name,
                "unsupported_parameter",
            )
    skipped = {*_NEUTRAL, *_WITHOUT_EFFECT}
    return {name: value for name, value in data.items() if name not in skipped}


def _message(message: object, index: int) -> object:
    """A message without its empty fields. Raises ApiError for tools, images and the like."""
    if not isinstance(message, dict):
        return message
    role, content = message.get("role"), message.get("content")
    if role in ("tool", "function"):
        raise invalid(
            f"messages of role {role} are not supported",
            f"messages[{index}].role",
            "unsupported_parameter",
        )
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise invalid(
                f"content of type {kind[:40]!r} is not supported; send text",
                f"messages[{index}].content",
                "unsupported_parameter",
            )
    for name in _EMPTY_IN_MESSAGE:
        if message.get(name):
            raise invalid(
                f"{name} of a message is not supported; leave it out",
                f"messages[{index}].{name}",
                "unsupported_parameter",
            )
    return {name: value for name, value in message.items() if name not in _EMPTY_IN_MESSAGE}


def _refusal(error: ValidationError) -> ApiError:
    """The first error in words."""
    detail = error.errors(include_url=False, include_context=False)[0]
    # Behind the names, pydantic says which of several types it tried.
    where = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            where += f".{part}" if where else part
    if detail["type"] == "extra_forbidden":
        return invalid(f"unknown parameter {where}", where, "unknown_parameter")
    if detail["type"] == "missing":
        return invalid(f"the parameter {where} is missing", where, "missing_parameter")
    shown = json.dumps(detail["input"], default=str, ensure_ascii=True)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return invalid(f"{where} is {shown}; {detail['msg']}", where, "invalid_value")
