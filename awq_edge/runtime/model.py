"""A loaded bundle: text in, text out."""

from __future__ import annotations

import functools
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.artifacts.directories import MANIFEST, Bundle, BundleManifest
from awq_edge.artifacts.input_files import read_json
from awq_edge.artifacts.paths import system_faults, user_path
from awq_edge.artifacts.sampling_keys import GENERATION_CONFIG, SamplingKeys, default_sampling
from awq_edge.errors import ArtifactError, ConfigError, ModelError, ResourceError
from awq_edge.runtime.backends import load_backend, open_session
from awq_edge.runtime.chat_template import (
    ChatTemplate,
    Message,
    load_chat_template,
    read_chat_template,
)
from awq_edge.runtime.generation import Generation, Request, TextStream, ThoughtRules
from awq_edge.runtime.memory import ProcessMemory, read_process_memory
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.session import Session, SessionOptions, check_context
from awq_edge.runtime.thoughts import ThoughtMarkers, find_markers
from awq_edge.runtime.tokenizer import Tokenizer, stop_token_ids


@dataclass(frozen=True)
class LoadFigures:
    """The cost of loading: seconds to check the files' hashes and to open the session with its
    tokenizer and library; the process's memory before and after the session alone."""

    verify_seconds: float
    session_seconds: float
    before: ProcessMemory
    after: ProcessMemory


_MARK = re.compile(r"<[^<>\s]{2,40}>")  # what ends a turn, as a text


@dataclass(frozen=True)
class ChatOptions:
    """Options of turning messages into a prompt.

    variables: of the chat template, beside the messages, by name (enable_thinking).
    continue_final_message: go on with a last message of the assistant; None: where there is one and
        add_generation_prompt is not asked for.
    add_generation_prompt: begin the answer's turn; None: unless a message is continued.
    """

    variables: Mapping[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def rendering(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The options of `ChatTemplate.render`. Raises ConfigError for two that exclude another."""
        if self.continue_final_message and self.add_generation_prompt:
            raise ConfigError(
                "continue_final_message and add_generation_prompt exclude each other; give one"
            )
        continued = self.continue_final_message
        if continued is None:
            last = messages[-1].get("role") if messages else None
            continued = last == "assistant" and not self.add_generation_prompt
        begun = not continued if self.add_generation_prompt is None else self.add_generation_prompt
        return {
            "continue_final_message": continued,
            "add_generation_prompt": begun,
            "variables": self.variables,
        }


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids, and the rules that tell the model's thoughts from its answer."""

    text: str
    ids: list[int]
    thoughts: ThoughtRules | None = None


class Model:
    """A bundle with its session, tokenizer and chat template. Close it, or use it in `with`."""

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        figures: LoadFigures,
    ) -> None:
        self.bundle = bundle
        self.session = session
        self.tokenizer = tokenizer
        self.chat_template = template
        self.load_figures = figures

    @functools.cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids that end an answer: those that the files name, and the chat template's end of a turn.

        A broken template adds none.
        """
        ids = stop_token_ids(self.tokenizer, self.bundle.manifest.eos_token_ids)
        end = self.tokenizer.leading_added_token(self._turn_end)
        return ids if end is None else ids | {end}

    @functools.cached_property
    def turn_end_texts(self) -> tuple[str, ...]:
        """Texts that end a chat's answer where no token stands for the template's end of a turn, as
        <|im_end|> in a model that never got that token."""
        mark = _MARK.match(self._turn_end)
        if mark is None or self.tokenizer.leading_added_token(self._turn_end) is not None:
            return ()
        return (mark[0],)

    @functools.cached_property
    def _turn_end(self) -> str:
        """The chat template's text after an answer; "" where it is not known."""
        markers = self.thought_markers
        if self.chat_template is None or (markers is not None and markers.channels):
            return ""  # what ends a turn of gpt-oss also ends its thoughts
        try:
            return self.chat_template.turn_end.lstrip()
        except (ModelError, ConfigError):
            return ""

    @functools.cached_property
    def thought_markers(self) -> ThoughtMarkers | None:
        """The markers around the model's thoughts; None where it has none."""
        if self.chat_template is None:
            return None
        return find_markers(self.chat_template.source, self.tokenizer.added_texts())

    @property
    def manifest(self) -> BundleManifest:
        return self.bundle.manifest

    @functools.cached_property
    def sampling(self) -> SamplingKeys:
        """The sampling keys of chat and serve: the bundle's, the model's, or the project's.

        Raises ModelError where the model's are impossible.
        """
        path = self.bundle.path / GENERATION_CONFIG
        return default_sampling(
            self.manifest.sampling, read_json(path) if path.exists() else {}, path
        )

    def prompt_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a text, taken as it is, or of messages, through the chat template.

        Raises ConfigError when the prompt is empty or the model has no chat template,
        ResourceError when the prompt leaves no room in the context.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise ConfigError("the prompt is empty; give --prompt some text")
            ids = self.tokenizer.encode(prompt)
        else:
            ids = self.chat_prompt(prompt).ids
        return self._fitting(ids)

    def chat_prompt(
        self, messages: Sequence[Message], options: ChatOptions | None = None
    ) -> Prompt:
        """The prompt of a conversation, whether it fits the context or not.

        Raises the errors of `render`.
        """
        rendering = (options or ChatOptions()).rendering(messages)
        template = self._require_template()
        text = template.render(messages, **rendering)
        rules = None
        if self.thought_markers is not None:
            beginning = template.beginning(text, messages, **rendering)
            rules = ThoughtRules(self.thought_markers, beginning)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return Prompt(text, ids, rules)

    def _fitting(self, ids: list[int]) -> list[int]:
        context = self.session.context
        if len(ids) > context:
            raise ResourceError(
                f"the prompt has {len(ids)} tokens, the context holds {context}; shorten it"
                + _more_context(self.manifest, context)
            )
        return ids

    def render(self, messages: Sequence[Message], options: ChatOptions | None = None) -> str:
        """The text of a conversation, ready for the model's answer.

        Raises ConfigError when the model has no chat template or its template refuses, ModelError
        when its template is broken.
        """
        rendering = (options or ChatOptions()).rendering(messages)
        return self._require_template().render(messages, **rendering)

    def _require_template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise ConfigError(
                f"{self.bundle.path} has no chat template (it is not a chat model); send the "
                "prompt as it is (--raw), or give one by --chat-template FILE"
            )
        return self.chat_template

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        chat: ChatOptions | None = None,
    ) -> Generation:
        """The model's continuation of a text, or its answer to messages.

        Greedy unless temperature is above 0 (the other parameters: `Sampling`).

        max_new_tokens: None generates to a stop or the end of the context.
        stop_token_ids: beside the model's own.
        chat: options for messages.
        Raises ConfigError and ResourceError on bad input.
        """
        return self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            stop_token_ids=stop_token_ids,
            ignore_eos=ignore_eos,
            chat=chat,
        ).finish()

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        chat: ChatOptions | None = None,
        reuse_cache: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> TextStream:
        """`generate` as a stream of text; the stream's `result` is complete at its end.

        Thoughts are in `pieces()` and in the result.

        reuse_cache: keep the part of the KV cache that the prompt shares with the sequence before.
        cancelled: asked before every execution; True ends the stream.
        """
        started = time.perf_counter()
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        ends: tuple[str, ...] = ()
        if isinstance(prompt, str):
            ids, thoughts = self.prompt_ids(prompt), None
        else:
            made = self.chat_prompt(prompt, chat)
            ids, thoughts = self._fitting(made.ids), made.thoughts
            ends = () if ignore_eos else self.turn_end_texts
        request = Request(
            prompt_ids=ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=(*stop, *ends),
            stop_token_ids=frozenset(stop_token_ids)
            | (frozenset() if ignore_eos else self.stop_token_ids),
            cancelled=cancelled,
            thoughts=thoughts,
        )
        return self.stream_request(request, reuse_cache=reuse_cache, started=started)

    def stream_request(
        self, request: Request, *, reuse_cache: bool = False, started: float | None = None
    ) -> TextStream:
        """Run a request of token ids. started: perf_counter() at its arrival.

        Raises ResourceError when its prompt and max_new_tokens do not fit the context.
        """
        wanted, context = request.max_new_tokens, self.session.context
        # The last generated token needs no place in the cache.
        if len(request.prompt_ids) + (wanted or 1) - 1 > context:
            raise ResourceError(
                f"{len(request.prompt_ids)} prompt tokens and {wanted or 1} new ones do not fit "
                f"the context of {context}; at most {context - len(request.prompt_ids) + 1} new "
                "tokens fit: lower --max-new-tokens" + _more_context(self.manifest, context)
            )
        if not reuse_cache:
            self.session.reset()
        return TextStream(self.session, self.tokenizer, request, started=started)

    def close(self) -> None:
        """Free weights and KV cache."""
        self.session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@system_faults()
def load(
    path: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    verify: bool = True,
    chat_template: str | Path | None = None,
    observer: Callable[[float, str], None] | None = None,
) -> Model:
    """Open a bundle and load it into the backend of its runtime.

    context: tokens of the KV cache, at most the bundle's, which is the default.
    threads: CPU threads; default: the physical cores.
    verify: compare the files with the manifest's hashes.
    chat_template: a file in place of the model's own.
    observer: called while an engine is built first: (part done, a word).
    Raises ArtifactError for an unsound bundle, RuntimeUnavailableError when this machine cannot
    execute it, ConfigError for impossible options, ResourceError when memory runs out.
    """
    directory = user_path(path, "BUNDLE")
    _refuse_models(directory, str(path))
    start = time.perf_counter()
    bundle = Bundle.open(directory, verify=verify)
    verified = time.perf_counter()
    check_context(bundle, context)
    tokenizer = Tokenizer(directory)
    if chat_template is None:
        template = load_chat_template(directory, tokenizer.special_tokens)
    else:
        file = user_path(chat_template, "--chat-template")
        name = f"--chat-template {chat_template}"
        template = read_chat_template(file, tokenizer.special_tokens, name=name)
    # The runtime's own library is no part of what the bundle takes.
    load_backend(bundle)
    before = read_process_memory()
    session = open_session(bundle, SessionOptions(context, threads, observer))
    figures = LoadFigures(
        verify_seconds=verified - start,
        session_seconds=time.perf_counter() - verified,
        before=before,
        after=read_process_memory(),
    )
    return Model(bundle, session, tokenizer, template, figures)


def _refuse_models(directory: Path, name: str) -> None:
    """Raise ArtifactError with the next command when a model was given instead of a bundle."""
    if (directory / MANIFEST).exists():
        return
    is_model = (directory / "config.json").exists()
    is_name = not directory.exists() and (name == "demo" or name.count("/") == 1)
    if is_model or (is_name and not name.startswith((".", "/", "~"))):
        raise ArtifactError(
            f"{name} is a model, not a bundle; make a bundle first: `awq-edge export "
            f"{shlex.quote(name)} --recipe cpu --out BUNDLE`, then run BUNDLE"
        )


def _more_context(manifest: BundleManifest, context: int) -> str:
    if context < manifest.context:
        return f" or give a larger --context (up to {manifest.context})"
    return " or export with a larger --context"
