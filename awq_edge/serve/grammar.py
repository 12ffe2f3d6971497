"""JSON schemas as restrictions of every token, by llguidance (extra `serve`; no torch).

llguidance computes, for each step, the set of tokens that some valid answer goes on with. JSON is
written as `{"a": 1, "b": [1, 2]}`, without other white space: small models may otherwise go on with
blanks for ever.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from awq_edge.process import children
from awq_edge.runtime.model import Model
from awq_edge.runtime.session import Float32
from awq_edge.serve.api_error import ApiError, GrammarError

# Bytes of a schema: compiling one takes time that grows with it.
LARGEST_SCHEMA = 64_000

# Compiling a grammar cannot be interrupted and has no limit of its own: 40 bytes of `multipleOf`,
# or a kilobyte of patterns in `allOf`, would keep a thread for ever. So each grammar is compiled by
# a process of its own first, which may be killed.
_TRIAL_SECONDS, _TRIAL_BYTES = 2, 1 << 30
_TRIAL = f"""
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({_TRIAL_SECONDS}, {_TRIAL_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({_TRIAL_BYTES}, {_TRIAL_BYTES}))
except ImportError:  # Windows: the time that the parent waits is the limit
    pass
from llguidance import LLMatcher, LLTokenizer
matcher = LLMatcher(LLTokenizer("byte"), sys.stdin.read(), log_level=0)
if not matcher.is_error():
    matcher.compute_bitmask()
sys.stdout.write(matcher.get_error() if matcher.is_error() else "")
"""
_MOST_TRIALS = 2  # at once
_TRIAL_WAIT_SECONDS = 10.0  # for others' trials
_trials = threading.BoundedSemaphore(_MOST_TRIALS)


def grammar_of(schema: dict[str, object]) -> str:
    """A grammar of the JSON that a schema allows. Raises GrammarError for what is not supported.

    The answer's form is ours: what a schema says of it in `x-guidance` is overridden.
    """
    try:
        size = len(json.dumps(schema).encode("utf-8"))
        if size > LARGEST_SCHEMA:
            raise GrammarError(f"the JSON schema has {size} bytes, at most {LARGEST_SCHEMA} may be")
        grammar = LLMatcher.grammar_from_json_schema(
            schema,
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
                "lenient": False,
                "coerce_one_of": False,
            },
        )
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not supported: {error}") from None
    if reason := _trial(grammar):
        raise GrammarError(f"the JSON schema is not supported: {reason}")
    return grammar


@functools.lru_cache(maxsize=256)
def _trial(grammar: str) -> str:
    """The reason why a grammar cannot be used; "" where it compiles in time. Takes 0.1 s.

    Raises ApiError where other requests' grammars keep it from being tried.
    """
    if not _trials.acquire(timeout=_TRIAL_WAIT_SECONDS):
        raise ApiError(
            429,
            "other requests' JSON schemas are being compiled; try again",
            code="schemas_busy",
            retry_after=_TRIAL_SECONDS,
        )
    try:
        done = children.run(
            [sys.executable, "-I", "-c", _TRIAL], timeout=3 * _TRIAL_SECONDS, input=grammar
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {_TRIAL_SECONDS} s to compile"
    finally:
        _trials.release()
    if done.returncode:
        return f"it takes more than {_TRIAL_SECONDS} s or {_TRIAL_BYTES >> 30} GiB to compile"
    return _without_state(done.stdout)


def _without_state(reason: str) -> str:
    """llguidance's reason without the dump of its state."""
    return " ".join(reason.partition("\n<state>")[0].split())


class Vocabulary:
    """The model's tokens as llguidance needs them: their bytes, and grammars over them."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        """llguidance's form, made for the first answer that needs it: most need none, and one of
        128,000 tokens takes a second or two and 100 MB."""
        model = self._model
        return LLTokenizer(
            model.tokenizer.to_json(),
            n_vocab=max(model.session.vocab_size, model.tokenizer.vocab_size),
            eos_token=sorted(model.stop_token_ids) or None,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; of a special token, its name."""
        return self._tokenizer.decode_bytes([token_id])

    def constraint(self, grammar: str) -> GrammarConstraint:
        """The state of a grammar at the beginning of an answer."""
        return GrammarConstraint(self._tokenizer, grammar, self._model.session.vocab_size)


class GrammarConstraint:
    """Implements `Constraint`: a grammar's state in one answer."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, vocab_size: int) -> None:
        """Raises GrammarError where the grammar cannot be used with this vocabulary."""
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
        self._check()
        self._bits = allocate_token_bitmask(1, tokenizer.vocab_size)
        self._vocab_size = vocab_size

    def mask(self, logits: Float32) -> Float32:
        """Mask the tokens that the grammar excludes. Raises GrammarError where all are excluded."""
        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        allowed: npt.NDArray[np.bool_] = bits.astype(np.bool_)
        if not allowed.any():
            raise GrammarError("no token of this model's vocabulary goes on with the JSON schema")
        masked: Float32 = np.where(allowed, logits, np.float32(-np.inf))
        return masked

    def accept(self, token_id: int) -> bool:
        self._matcher.consume_token(token_id)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _without_state(self._matcher.get_error())
            raise GrammarError(f"the JSON schema is too complex or not supported: {reason}")
