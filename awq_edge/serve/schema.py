"""Request bodies: the parameters that are accepted, and those that are refused because ignoring
them would change the answer."""

from __future__ import annotations

import codecs
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
)

from awq_edge.artifacts.input_files import parse_json
from awq_edge.artifacts.sampling_keys import MinP, RepetitionPenalty, SamplingKeys, TopK, TopP, off
from awq_edge.artifacts.schema import Record
from awq_edge.errors import ConfigError
from awq_edge.serve.api_error import ApiError, invalid

MAX_STOPS = 256
MAX_STOP_CHARACTERS = 10_000  # of all together: every token is compared with them
MAX_TOP_LOGPROBS = 20  # of a chat completion
MAX_LOGPROBS = 5  # of a completion
_LARGEST_SEED = 2**63 - 1
_SHOWN_NAME = 100

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
# Further keys of a message. The first change no answer of this server, whatever their values; the
# others are accepted only where they are empty.
_WITHOUT_EFFECT_IN_MESSAGE = (
    "annotations",
    "cache_control",
    "id",
    "logprobs",
    "metadata",
    "name",
    "parsed",
    "provider_specific_fields",
    "reasoning_details",
    "status",
    "thinking_blocks",
    "timestamp",
)
_EMPTY_IN_MESSAGE = ("audio", "function_call", "images", "tool_call_id", "tool_calls")
_WITHOUT_EFFECT_IN_PART = ("annotations", "cache_control", "id", "logprobs")


class _Body(Record, strict=True):
    """An object of a request."""


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool = False  # a last chunk with the counts of tokens
    include_obfuscation: bool | None = None  # has no effect


class JsonSchema(_Body):
    """The schema of an answer; name, description and strict have no effect: it is always
    followed."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Body):
    """The form of the answer: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def _false_is_none(value: object) -> object:
    return None if value is False else value


def _texts(value: object) -> object:
    """A single text as the list of one that it stands for."""
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise ValueError("it must be a text or a list of texts")
    return value


def _parts(value: object) -> object:
    """A text content as the list of parts that it stands for."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is not None and not isinstance(value, list):
        raise ValueError("it must be a text or a list of parts")
    return value


def _few_stops(stops: list[str]) -> list[str]:
    size = sum(map(len, stops))
    if size > MAX_STOP_CHARACTERS:
        raise ValueError(f"the texts have {size} characters, at most {MAX_STOP_CHARACTERS} can be")
    if "" in stops:
        raise ValueError("a stop text is empty; leave it out")
    return stops


Tokens = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST_SEED)]
# max_tokens: -1 means as many as there is room for.
UNLIMITED_TOKENS = 2**31
MaxTokens = Annotated[Tokens | None, off(-1, means=UNLIMITED_TOKENS)]


class GenerationRequest(_Body):
    """The parameters of both APIs. top_k, min_p and repetition_penalty are not OpenAI's."""

    model: str | None = None
    max_tokens: MaxTokens = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Annotated[Seed | None, off(-1, means=None)] = None
    stop: Annotated[
        Annotated[list[str], Field(max_length=MAX_STOPS), AfterValidator(_few_stops)] | None,
        BeforeValidator(_texts),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOPS)] | None = None

    def sampling(self) -> SamplingKeys:
        """The sampling keys that the request itself sets."""
        return SamplingKeys(**{key: getattr(self, key) for key in SamplingKeys.model_fields})


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. prompt: a text or token ids, or a list of one of these."""

    prompt: str | list[int]
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, BeforeValidator(_false_is_none)
    ] = None
    add_special_tokens: bool | None = None


class TextPart(_Body):
    """A part of a message's content. A refusal is the text of one."""

    type: Literal["text", "refusal"]
    text: str


class ChatMessage(_Body):
    """One message. developer is another word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart] | None, BeforeValidator(_parts)] = None
    refusal: str | None = None  # stands in place of the content
    reasoning_content: str | None = None
    reasoning: str | None = None  # another server's name of the same

    def plain(self) -> dict[str, str]:
        """The message as chat templates read it."""
        role = "system" if self.role == "developer" else self.role
        # Glued together, parts would make words that nobody said.
        text = "\n".join(part.text for part in self.content or ()) or self.refusal or ""
        thoughts = self.reasoning_content or self.reasoning
        rest = {"reasoning_content": thoughts} if thoughts else {}
        return {"role": role, "content": text, **rest}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions.

    max_completion_tokens: max_tokens by its newer name.
    chat_template_kwargs: variables of the chat template, of which two have keys of their own.
    continue_final_message, add_generation_prompt: see `ChatOptions`.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def variables(self) -> dict[str, Any]:
        """The request's variables for the chat template."""
        named: dict[str, Any] = {
            "enable_thinking": self.enable_thinking,
            "reasoning_effort": self.reasoning_effort,
        }
        if self.reasoning_effort == "none" and self.enable_thinking is None:
            named["enable_thinking"] = False
        given = {name: value for name, value in named.items() if value is not None}
        return {**given, **(self.chat_template_kwargs or {})}


R = TypeVar("R", bound=GenerationRequest)


def parse(body: bytes, model: type[R]) -> R:
    """The request in a body. Raises ApiError, status 400, that names the fault."""
    try:
        # PowerShell and others begin a UTF-8 text with its mark.
        data = parse_json(body.removeprefix(codecs.BOM_UTF8), "the body", ConfigError)
    except ConfigError as error:
        raise invalid(str(error)) from None
    kept = _without_neutral(data)
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_message(m, i) for i, m in enumerate(kept["messages"])]
    if "prompt" in kept:
        kept["prompt"] = _prompt(kept["prompt"])
    try:
        return model.model_validate(kept)
    except ValidationError as error:
        raise _refusal(error) from None


def _without_neutral(data: dict[str, Any]) -> dict[str, Any]:
    """The parameters that ask for something. Raises ApiError for one that is not built."""
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


def _prompt(prompt: object) -> object:
    """A text or token ids, also from a list of one. Raises ApiError for anything else."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        if len(prompt) > 1:
            raise _unsupported(
                f"{len(prompt)} prompts in one request are not supported; send them one by one",
                "prompt",
            )
        prompt = prompt[0]
    if not isinstance(prompt, (str, list)):
        raise invalid(
            f"prompt is {_shown(prompt)}; it must be a text, token ids, or a list of one of these",
            "prompt",
            "invalid_value",
        )
    for place, item in enumerate(prompt if isinstance(prompt, list) else ()):
        if type(item) is not int:
            raise invalid(
                f"prompt[{place}] is {_shown(item)}; a token id is a whole number",
                f"prompt[{place}]",
                "invalid_value",
            )
    return prompt


def _message(message: object, index: int) -> object:
    """A message with the keys that have a meaning here. Raises ApiError for tools, images and the
    like."""
    if not isinstance(message, dict):
        return message
    where, role = f"messages[{index}]", message.get("role")
    if role in ("tool", "function"):
        raise _unsupported(f"messages of role {role} are not supported", f"{where}.role")
    for name in _EMPTY_IN_MESSAGE:
        if message.get(name):
            raise _unsupported(
                f"{name} of a message is not supported; leave it out", f"{where}.{name}"
            )
    skipped = {*_EMPTY_IN_MESSAGE, *_WITHOUT_EFFECT_IN_MESSAGE}
    kept = {name: value for name, value in message.items() if name not in skipped}
    content = kept.get("content")
    if content is None and role in ("system", "developer", "user"):
        state = "null; send a text" if "content" in kept else "missing"
        raise invalid(f"{where}.content is {state}", f"{where}.content", "invalid_value")
    if isinstance(content, list):
        kept["content"] = [_content_part(part, where) for part in content]
    return kept


def _content_part(part: object, where: str) -> object:
    """A part of a content, with the keys that have a meaning. Raises ApiError where it is no
    text."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    kept = {name: value for name, value in part.items() if name not in _WITHOUT_EFFECT_IN_PART}
    kind = kept.get("type")
    if kind in ("input_text", "output_text"):  # the newer API's words for the same
        kept["type"] = "text"
    elif kind == "refusal" and "text" not in kept:
        kept["text"] = kept.pop("refusal", None)
    elif isinstance(kind, str) and kind != "text":
        raise _unsupported(
            f"content of type {kind[:40]!r} is not supported; send text", f"{where}.content"
        )
    return kept


def _unsupported(message: str, param: str) -> ApiError:
    return invalid(message, param, "unsupported_parameter")


def _refusal(error: ValidationError) -> ApiError:
    """The first error in words. The models have no unions but with None, so that pydantic's place
    is the request's own."""
    detail = error.errors(include_url=False, include_context=False)[0]
    where = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        else:
            where += ("." if where else "") + part[:_SHOWN_NAME]
    if detail["type"] == "extra_forbidden":
        return invalid(f"unknown parameter {where}", where, "unknown_parameter")
    if detail["type"] == "missing":
        return invalid(f"the parameter {where} is missing", where, "missing_parameter")
    reason = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        reason = "it must be an object"
    return invalid(f"{where} is {_shown(detail['input'])}; {reason}", where, "invalid_value")


def _shown(value: object) -> str:
    """A value of the request, shortened for an error."""
    shown = json.dumps(value, default=str, ensure_ascii=True)
    return shown if len(shown) <= 80 else shown[:77] + "..."
