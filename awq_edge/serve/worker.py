"""The worker's side: runs jobs on the one session, with the KV cache of the job before."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from typing import Protocol

from awq_edge.runtime.generation import Constraint, Generation, Request, TextStream
from awq_edge.runtime.logprobs import TokenLogprobs
from awq_edge.runtime.model import Model
from awq_edge.runtime.session import SessionMemory
from awq_edge.serve.api_error import GrammarError, invalid
from awq_edge.serve.job import AnswerDelta, Failed, Finished, Job, ScoredToken
from awq_edge.serve.kept_cache import KeptCache
from awq_edge.serve.scheduler import ClosedError, Outcome


class Tokens(Protocol):
    """The vocabulary, as the worker needs it: `awq_edge.serve.grammar.Vocabulary`."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def constraint(self, grammar: str) -> Constraint: ...


class Recorder(Protocol):
    """The receiver of each generation's figures: the metrics."""

    def started(self, queue_seconds: float) -> None: ...

    def finished(self, generation: Generation, memory: SessionMemory, kept: int) -> None: ...


class Worker:
    """`worker(job)` runs a job to its end; for one thread only, as sessions are."""

    def __init__(self, model: Model, tokens: Tokens, recorder: Recorder) -> None:
        self._model = model
        self._tokens = tokens
        self._recorder = recorder
        self._kept = KeptCache(model.session)

    def __call__(self, job: Job) -> Outcome:
        self._recorder.started(time.perf_counter() - job.arrived)
        try:
            generation = self._generate(job)
        except GrammarError as error:  # the request's fault, and nothing is broken
            job.fail(invalid(str(error), "response_format", "invalid_schema"))
            return "failed"
        except BaseException:
            # The KV cache's contents are not certain any more.
            self._model.session.reset()
            raise
        return "cancelled" if generation.finish_reason == "cancelled" else "completed"

    def _generate(self, job: Job) -> Generation:
        task = job.task
        if not job.cancelled.is_set():
            self._kept.prepare(task.prompt_ids)
        request = Request(
            prompt_ids=task.prompt_ids,
            max_new_tokens=task.max_new_tokens,
            sampling=task.sampling,
            stop=(*task.stop, *(self._model.turn_end_texts if task.api == "chat" else ())),
            stop_token_ids=self._model.stop_token_ids | task.stop_token_ids,
            cancelled=job.cancelled.is_set,
            constraint=None if task.grammar is None else self._tokens.constraint(task.grammar),
            top_logprobs=task.top_logprobs,
            thoughts=task.thoughts,
        )
        stream = self._model.stream_request(request, reuse_cache=True, started=job.arrived)
        scores = _Scores(self._tokens)
        for piece in stream.pieces():
            tokens = () if piece.thought else scores.new(stream)
            job.deliver(AnswerDelta(piece.text, tokens, piece.thought))
        generation = stream.result
        # Before the client is told, who may look at once; and by the thread that owns the session.
        self._recorder.finished(generation, self._model.session.memory, self._kept.nbytes)
        if generation.finish_reason == "cancelled":
            # A client that is still there sees this where the server shuts down.
            job.deliver(Failed(ClosedError("the server is shutting down")))
        else:
            job.deliver(Finished(generation, scores.new(stream, final=True)))
        return generation


class _Scores:
    """The scored tokens of a stream's answer, each given out once."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._given = 0
        self._size = self._offset = 0  # bytes, and whole characters, of the tokens so far
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def new(self, stream: TextStream, *, final: bool = False) -> Sequence[ScoredToken]:
        """The tokens whose text came since the last call, none behind the beginning of a stop
        string.

        final: also the tokens whose text adds nothing.
        """
        tokens: list[ScoredToken] = []
        result = stream.result if stream.logprobs else None
        cut = None
        if result is not None and result.stop_string is not None:
            cut = len(result.text.encode("utf-8"))
        out = 0 if result is None else len(result.text.encode("utf-8"))
        if stream.answer_begin is None:
            return tokens
        self._given = max(self._given, stream.answer_begin)
        for scored in stream.logprobs[self._given :]:
            if not final and self._size >= out:
                break  # it may be the beginning of a stop string
            self._given += 1
            if cut is None or self._size < cut:
                tokens.append(self._scored(scored))
            data = self._tokens.token_bytes(scored.token_id)
            self._size += len(data)
            self._offset += len(self._decoder.decode(data))
        return tokens

    def _scored(self, scored: TokenLogprobs) -> ScoredToken:
        data = self._tokens.token_bytes
        return ScoredToken(
            data=data(scored.token_id),
            logprob=scored.logprob,
            offset=self._offset,
            top=tuple((data(i), logprob) for i, logprob in scored.top),
        )
