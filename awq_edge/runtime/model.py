"""A loaded bundle: text in, text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from awq_edge.artifacts import MANIFEST, Bundle, BundleManifest
from awq_edge.backends import load_backend, open_session
from awq_edge.errors import ArtifactError, ConfigError, ResourceError
from awq_edge.runtime.chat_template import ChatTemplate, Message, load_chat_template
from awq_edge.runtime.generation import Generation, Request, TextStream
from awq_edge.runtime.memory import ProcessMemory, read_process_memory
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.session import Session, SessionOptions, check_context
from awq_edge.runtime.tokenizer import Tokenizer, stop_token_ids


@dataclass(frozen=True)
class LoadFigures:
    """What loading cost. Seconds: checking the files' hashes, and opening the session with its
    tokenizer and library. Memory of the process before and after the session alone."""

    verify_seconds: float
    session_seconds: float
    before: ProcessMemory
    after: ProcessMemory


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
        self.stop_token_ids = stop_token_ids(tokenizer, bundle.manifest.eos_token_ids)

    @property
    def manifest(self) -> BundleManifest:
        return self.bundle.manifest

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
            ids = self.tokenizer.encode(self.render(prompt), add_special_tokens=False)
        context = self.session.context
        if len(ids) > context:
            raise ResourceError(
                f"the prompt has {len(ids)} tokens, the context holds {context}; shorten it"
                + _more_context(self.manifest, context)
            )
        return ids

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, ready for the model's answer.

        Raises ConfigError when the model has no chat template or its template refuses.
        """
        if self.chat_template is None:
            raise ConfigError(
                f"{self.bundle.path} has no chat template (it is not a chat model); send the "
                "prompt as it is (--raw)"
            )
        return self.chat_template.render(messages)

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
        ignore_eos: bool = False,
    ) -> Generation:
        """The model's continuation of a text, or its answer to messages.

        Greedy unless temperature is above 0 (the rest: `Sampling`). max_new_tokens: None generates
        to a stop or the end of the context. Raises ConfigError and ResourceError on bad input.
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
            ignore_eos=ignore_eos,
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
        ignore_eos: bool = False,
        reuse_cache: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> TextStream:
        """As `generate`, in pieces of text as they come; `.result` of the stream at its end.

        reuse_cache: keep the part of the KV cache that the prompt shares with what ran before.
        cancelled: asked before every execution; True ends the stream.
        """
        started = time.perf_counter()
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        request = Request(
            prompt_ids=self.prompt_ids(prompt),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=tuple(stop),
            stop_token_ids=frozenset() if ignore_eos else self.stop_token_ids,
            cancelled=cancelled,
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load(
    path: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    verify: bool = True,
    observer: Callable[[float, str], None] | None = None,
) -> Model:
    """Open a bundle and load it into the backend of its runtime.

    context: tokens of the KV cache, at most what the bundle was exported for, which is the
    default. threads: CPU threads; default: the physical cores. verify: compare the files with the
    manifest's hashes. observer: called while an engine is built first: (part done, a word).
    Raises ArtifactError for what is not a sound bundle, RuntimeUnavailableError when this machine
    cannot execute it, ConfigError for impossible options, ResourceError when memory runs out.
    """
    directory = Path(path).expanduser()
    _refuse_models(directory, str(path))
    start = time.perf_counter()
    bundle = Bundle.open(directory, verify=verify)
    verified = time.perf_counter()
    check_context(bundle, context)
    tokenizer = Tokenizer(directory)
    template = load_chat_template(directory, tokenizer.special_tokens)
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
            f"{name} is a model, not a bundle; make a bundle first: `awq-edge export {name} "
            "--recipe cpu --out BUNDLE`, then run BUNDLE"
        )


def _more_context(manifest: BundleManifest, context: int) -> str:
    if context < manifest.context:
        return f" or give a larger --context (up to {manifest.context})"
    return " or export with a larger --context"
