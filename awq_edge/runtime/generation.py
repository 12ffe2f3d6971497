"""The token loop: the same over every backend.

prompt ids ─► prefill in chunks ─► sample ─► decode ─► sample ─► ... ─► text as it comes
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from awq_edge.errors import ConfigError
from awq_edge.runtime.logprobs import TokenLogprobs, token_logprobs
from awq_edge.runtime.metrics import Timings
from awq_edge.runtime.sampling import Sampler, Sampling
from awq_edge.runtime.session import Float32, Session
from awq_edge.runtime.thoughts import (
    AnswerConstraint,
    HeldText,
    TextDelta,
    ThoughtMarkers,
    ThoughtSplitter,
    overlap,
)
from awq_edge.runtime.tokenizer import Tokenizer

# stop: a stop token or string came. length: max_new_tokens were generated. context: the KV cache
# is full. cancelled: the caller asked to end.
FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """The outcome of one request.

    text: the answer.
    ids: the generated ids, without the stop token.
    seed: repeats the generation.
    prompt_ids: everything before the answer.
    thoughts: a reasoning model's text before the answer, without markers.
    thought_tokens: number of their ids, markers included.
    written: thoughts, markers and answer as the model wrote them.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None
    seed: int
    timings: Timings
    thoughts: str = ""
    thought_tokens: int = 0
    written: str = ""


@dataclass(frozen=True)
class ThoughtRules:
    """The rules that tell thoughts from the answer."""

    markers: ThoughtMarkers
    beginning: str = ""  # of the answer's turn, in the prompt


class Constraint(Protocol):
    """A restriction of the next token, for one answer: a grammar, for example. Has a state; used
    once."""

    def mask(self, logits: Float32) -> Float32:
        """A copy of logits, float32 [vocab], with -inf where a token must not come."""
        ...

    def accept(self, token_id: int) -> bool:
        """Advance behind a chosen token; True if the answer is complete with it."""
        ...


@dataclass(frozen=True)
class Request:
    """One generation's prompt, sampling and limits."""

    prompt_ids: Sequence[int]
    max_new_tokens: int | None = None  # None means until a stop or the end of the context
    sampling: Sampling = field(default_factory=Sampling)
    # texts that end the answer, not part of it; one may name special tokens
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()  # ids that end it
    cancelled: Callable[[], bool] | None = None  # asked before every execution of the graph
    constraint: Constraint | None = None  # restricts every token of the answer
    # also give log-probabilities of every token and of this many likeliest; None: of none
    top_logprobs: int | None = None
    thoughts: ThoughtRules | None = None  # None where all of the text is the answer

    def __post_init__(self) -> None:
        """Raises ConfigError for a request that cannot be met whatever the model."""
        if not self.prompt_ids:
            raise ConfigError("the prompt is empty; give at least one token of text")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if "" in self.stop:
            raise ConfigError("a stop string is empty; give texts of one character or more")


class TokenLoop:
    """Runs one request on a session; `timings` and `finish_reason` fill as its `tokens` come.

    The session keeps the prompt and all but the last generated token in its cache.
    """

    def __init__(
        self,
        session: Session,
        request: Request,
        *,
        started: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """started: clock() of the request, for TTFT; default: now.
        clock: seconds.
        """
        self._session = session
        self._request = request
        self._clock = clock
        self._started = clock() if started is None else started
        self.sampler = Sampler(request.sampling)
        self.timings = Timings(prompt_tokens=len(request.prompt_ids))
        self.finish_reason: FinishReason = "cancelled"
        self.logprobs: list[TokenLogprobs] = []  # of the tokens given out, where asked for

    def tokens(self) -> Generator[int, None, None]:
        """The generated ids, one by one, without the stop token."""
        try:
            yield from self._run()
        finally:
            self.timings.total = self._clock() - self._started

    def _run(self) -> Iterator[int]:
        session, request, timings = self._session, self._request, self.timings
        logits = self._prefill()
        if logits is None:
            return
        self.sampler.observe(list(request.prompt_ids))
        token, logprobs = self._choose(logits)
        timings.ttft = self._clock() - self._started
        while True:
            if token in request.stop_token_ids:
                self.finish_reason = "stop"
                return
            timings.generated_tokens += 1
            if logprobs is not None:
                self.logprobs.append(logprobs)
            complete = request.constraint is not None and request.constraint.accept(token)
            yield token
            if complete:
                self.finish_reason = "stop"
                return
            if timings.generated_tokens == request.max_new_tokens:
                self.finish_reason = "length"
                return
            if session.past_length == session.context:
                self.finish_reason = "context"
                return
            if self._cancelled():
                return
            start = self._clock()
            token, logprobs = self._choose(session.decode(token))
            timings.steps.append(self._clock() - start)

    def _choose(self, logits: Float32) -> tuple[int, TokenLogprobs | None]:
        """The next token, and its log-probabilities where the request asked for them."""
        request = self._request
        allowed = logits if request.constraint is None else request.constraint.mask(logits)
        token = self.sampler.choose(allowed)
        if request.top_logprobs is None:
            return token, None
        return token, token_logprobs(logits, token, request.top_logprobs)

    def _prefill(self) -> Float32 | None:
        """Logits after the prompt; None when cancelled. Ids that the KV cache holds are not run
        again."""
        session, ids = self._session, self._request.prompt_ids
        # The last id is always run: its logits are needed.
        kept = min(common_prefix(session.cached_ids, ids), len(ids) - 1)
        session.truncate(kept)
        self.timings.reused_tokens = kept
        logits: Float32 | None = None
        for begin in range(kept, len(ids), session.prefill_chunk):
            if self._cancelled():
                return None
            chunk = ids[begin : begin + session.prefill_chunk]
            start = self._clock()
            logits = session.prefill(chunk)
            self.timings.chunks.append((len(chunk), self._clock() - start))
        return logits

    def _cancelled(self) -> bool:
        return self._request.cancelled is not None and self._request.cancelled()


class TextStream:
    """The text of one generation, delta by delta; `result` once the iteration has ended.

    Iteration gives the answer; `pieces` gives the thoughts too.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        request: Request,
        *,
        started: float | None = None,
    ) -> None:
        self._splitter: ThoughtSplitter | None = None
        shown, rules = request.stop, request.thoughts
        if rules is not None:
            self._splitter = rules.markers.splitter(rules.beginning)
            shown += rules.markers.texts
            if request.constraint is not None:
                request = replace(
                    request,
                    constraint=AnswerConstraint(
                        request.constraint,
                        self._splitter,
                        tokenizer.encode(rules.markers.opening, add_special_tokens=False),
                        request.stop_token_ids,
                    ),
                )
        self._loop = TokenLoop(session, request, started=started)
        self._request = request
        self._decoder = tokenizer.stream(request.prompt_ids)
        # Special tokens have no text, but markers and stop strings may name them.
        self._special = {
            number: text
            for number, text in (tokenizer.special_texts() if shown else {}).items()
            if any(text in wanted for wanted in shown)
        }
        self._stops = StopStrings(request.stop)
        self._ids: list[int] = []
        self._answer: list[str] = []
        self._thoughts: list[str] = []
        self._written: list[str] = []
        self._thought_tokens = 0
        self._answer_begin: int | None = None
        self._pieces = self._run()
        self._answers = self._without_thoughts()

    def __iter__(self) -> Iterator[str]:
        return self._answers

    def pieces(self) -> Iterator[TextDelta]:
        """Thoughts and answer as they come."""
        return self._pieces

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of every token generated so far, where the request asked for them."""
        return self._loop.logprobs

    @property
    def answer_begin(self) -> int | None:
        """Tokens before the first one of the answer; None while there is no answer."""
        return self._answer_begin

    @property
    def result(self) -> Generation:
        """The generation so far; final when the iteration has ended."""
        loop = self._loop
        return Generation(
            text="".join(self._answer),
            ids=tuple(self._ids),
            prompt_ids=tuple(self._request.prompt_ids),
            finish_reason="stop" if self._ended else loop.finish_reason,
            stop_string=self._stops.matched,
            seed=loop.sampler.seed,
            timings=loop.timings,
            thoughts="".join(self._thoughts),
            thought_tokens=self._thought_tokens,
            written="".join(self._written),
        )

    def finish(self) -> Generation:
        """Run to the end and return the result."""
        for _ in self._pieces:
            pass
        return self.result

    @property
    def _ended(self) -> bool:
        """True if the text itself says that it is over."""
        ended = self._splitter is not None and self._splitter.ended
        return ended or self._stops.matched is not None

    def _without_thoughts(self) -> Iterator[str]:
        with contextlib.closing(self._pieces):
            for piece in self._pieces:
                if not piece.thought:
                    yield piece.text

    def _run(self) -> Generator[TextDelta, None, None]:
        # Left early, the loop ends its `finally` (the total time) here and not at some later time.
        with contextlib.closing(self._loop.tokens()) as tokens:
            for token in tokens:
                self._ids.append(token)
                yield from self._split(self._decoder.push(token))
                if (special := self._special.get(token)) is not None:
                    yield from self._split(self._decoder.flush())
                    yield from self._split(special, special=True)
                if self._ended:
                    return
        yield from self._split(self._decoder.flush())
        for piece in self._splitter.flush() if self._splitter is not None else ():
            yield from self._give(piece)
        yield from self._answered(self._stops.flush())

    def _split(self, text: str, *, special: bool = False) -> Iterator[TextDelta]:
        """The text that a token made certain."""
        self._written.append(text)
        splitter = self._splitter
        if splitter is None:
            yield from self._give(TextDelta(text), special=special)
            return
        before = splitter.state
        pieces = splitter.push(text, special=special)
        if "thoughts" in (before, splitter.state):
            self._thought_tokens = len(self._ids)
        if special and before == "answer":  # it may belong to a stop string
            pieces = [TextDelta(text)]
        for piece in pieces:
            # The constraint has not seen the text that follows the thoughts within one token.
            if piece.thought or before != "thoughts" or self._request.constraint is None:
                yield from self._give(piece, special=special)

    def _give(self, piece: TextDelta, *, special: bool = False) -> Iterator[TextDelta]:
        if piece.thought:
            self._thoughts.append(piece.text)
            yield piece
        elif piece.text:
            if self._answer_begin is None:
                thoughts = self._thought_tokens
                self._answer_begin = max(thoughts, len(self._ids) - 1) if thoughts else 0
            yield from self._answered(self._stops.push(piece.text, special=special))

    def _answered(self, text: str) -> Iterator[TextDelta]:
        if text:
            self._answer.append(text)
            yield TextDelta(text)


class StopStrings:
    """Finds stop strings in a stream and holds back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = HeldText()
        self.matched: str | None = None

    def push(self, piece: str, *, special: bool = False) -> str:
        """The text that is certain not to belong to a stop string.

        The stop that is complete first wins, of several the longest: so the outcome does not depend
        on how the text is cut into pieces.

        special: the text of a special token, which counts for the stops and is not given out.
        """
        if self.matched is not None:
            return ""
        self._held.append(piece, special)
        text = self._held.text
        places = [(text.find(stop), stop) for stop in self._stops]
        hits = [(place + len(stop), place, stop) for place, stop in places if place >= 0]
        if hits:
            _, place, self.matched = min(hits)
            return self._held.take(place)
        held = max((overlap(text, stop) for stop in self._stops), default=0)
        return self._held.take(len(text) - held)

    def flush(self) -> str:
        """The text held back, when the stream has ended."""
        return "" if self.matched is not None else self._held.take(len(self._held.text))


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids that both sequences begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
