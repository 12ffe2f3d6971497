"""The token loop over a scripted session: what is executed, what is shown, why it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.errors import ConfigError
from awq_edge.runtime.generation import Request, StopStrings, TextStream
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.tokenizer import Tokenizer
from tests.tiny_models import EOS, save_tokenizer

from .fakes import scripted

PROMPT = [10, 11, 12]
END = frozenset({EOS})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Every byte of a text is a token."""
    return Tokenizer(save_tokenizer(tmp_path_factory.mktemp("bytes"), merges=False))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def stream_of(tokenizer: Tokenizer, text: str, **request: object) -> TextStream:
    """A stream of a session that answers with `text` and then with the end token."""
    session = scripted(PROMPT, [*ids_of(tokenizer, text), EOS])
    return TextStream(session, tokenizer, Request(PROMPT, stop_token_ids=END, **request))


def test_stop_token_ends_the_answer_and_is_not_part_of_it(tokenizer: Tokenizer) -> None:
    stream = stream_of(tokenizer, "Hello — you")
    pieces = list(stream)
    result = stream.result
    assert "".join(pieces) == result.text == "Hello — you"
    assert all("\ufffd" not in piece for piece in pieces)
    assert result.ids == tuple(ids_of(tokenizer, "Hello — you"))
    assert result.finish_reason == "stop"
    assert result.stop_string is None
    assert result.timings.generated_tokens == len(result.ids)


def test_length_counts_generated_tokens(tokenizer: Tokenizer) -> None:
    session = scripted(PROMPT, ids_of(tokenizer, "abcdef"))
    result = TextStream(session, tokenizer, Request(PROMPT, max_new_tokens=4)).finish()
    assert (result.text, result.finish_reason) == ("abcd", "length")
    # The last token is not run: nobody asks for what follows it.
    assert session.executed() == [
        ("prefill", PROMPT),
        *(("decode", token) for token in result.ids[:3]),
    ]
    assert len(result.timings.steps) == 3


def test_a_character_cut_by_the_limit_is_shown_as_replaced(tokenizer: Tokenizer) -> None:
    session = scripted(PROMPT, ids_of(tokenizer, "a€"))
    result = TextStream(session, tokenizer, Request(PROMPT, max_new_tokens=3)).finish()
    assert result.text.rstrip("\ufffd") == "a"
    assert result.text != "a"


def test_context_end(tokenizer: Tokenizer) -> None:
    """The cache takes the prompt and all generated tokens but the last."""
    session = scripted(PROMPT, [20] * 50, context=10)
    result = TextStream(session, tokenizer, Request(PROMPT)).finish()
    assert result.finish_reason == "context"
    assert len(result.ids) == 10 - len(PROMPT) + 1
    assert session.past_length == session.context


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("o t",), "one tw"),
        ("aaab", ("aab",), "a"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("a € b", ("€",), "a "),
        ("abc", ("abcd", "bc"), "a"),
    ],
)
def test_stop_string_over_token_borders(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...], shown: str
) -> None:
    stream = stream_of(tokenizer, text, stop=stop)
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text == shown
    assert stream.result.finish_reason == "stop"
    assert stream.result.stop_string in stop
    assert stream.result.timings.total > 0


def test_what_only_began_like_a_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    stream = stream_of(tokenizer, "one tw", stop=("two",))
    assert "".join(stream) == "one tw"
    assert stream.result.stop_string is None


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@given(stops=STOPS, pieces=st.lists(st.text("abc", max_size=4), max_size=8))
def test_stop_strings_are_their_definition(stops: tuple[str, ...], pieces: list[str]) -> None:
    """The stop that is complete first wins, however the text was cut; nothing of it is shown."""
    text = "".join(pieces)
    finder = StopStrings(stops)
    shown = "".join(finder.push(piece) for piece in pieces) + finder.flush()
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(stops)]
    if not ends:
        assert (shown, finder.matched) == (text, None)
        return
    complete = [stop for stop in stops if text[: ends[0]].endswith(stop)]
    assert finder.matched == max(complete, key=len)
    assert shown == text[: ends[0] - len(finder.matched)]


@given(pieces=st.lists(st.text("abc", max_size=4), max_size=8))
def test_no_more_is_held_back_than_may_become_a_stop(pieces: list[str]) -> None:
    stop = "abab"
    finder = StopStrings((stop,))
    shown = text = ""
    for piece in pieces:
        text += piece
        shown += finder.push(piece)
        if finder.matched is not None:
            return
        held = text[len(shown) :]
        assert stop.startswith(held) and len(held) < len(stop)


def test_prompt_is_prefilled_in_chunks(tokenizer: Tokenizer) -> None:
    prompt = list(range(10, 31))
    session = scripted(prompt, [40, 41], prefill_chunk=8)
    result = TextStream(session, tokenizer, Request(prompt, max_new_tokens=2)).finish()
    assert result.ids == (40, 41)
    chunks = [len(call[1]) for call in session.executed() if call[0] == "prefill"]  # type: ignore[arg-type]
    assert chunks == [8, 8, 5]
    assert [tokens for tokens, _ in result.timings.chunks] == chunks
    assert result.timings.prompt_tokens == 21


@pytest.mark.parametrize("polls", [0, 1, 2])
def test_cancelled_during_the_prefill(tokenizer: Tokenizer, polls: int) -> None:
    prompt = list(range(10, 34))  # three chunks
    session = scripted(prompt, [40], prefill_chunk=8)
    answers = iter([False] * polls + [True])
    request = Request(prompt, cancelled=lambda: next(answers))
    result = TextStream(session, tokenizer, request).finish()
    assert (result.finish_reason, result.ids, result.text) == ("cancelled", (), "")
    assert result.timings.ttft is None
    assert session.past_length == 8 * polls


def test_cancelled_while_generating_keeps_what_came(tokenizer: Tokenizer) -> None:
    shown: list[str] = []
    session = scripted(PROMPT, ids_of(tokenizer, "abcdefgh"))
    request = Request(PROMPT, cancelled=lambda: len(shown) == 3)
    stream = TextStream(session, tokenizer, request)
    for piece in stream:
        shown.append(piece)
    assert stream.result.text == "abc"
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.timings.ttft is not None


def test_a_stream_that_is_left_early_has_its_figures(tokenizer: Tokenizer) -> None:
    stream = stream_of(tokenizer, "abcdef")
    iterator = iter(stream)
    assert next(iterator) == "a"
    iterator.close()  # type: ignore[attr-defined]
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == "a"
    assert stream.result.timings.total > 0


def test_a_shared_beginning_is_not_run_again(tokenizer: Tokenizer) -> None:
    session = scripted(PROMPT, [40, 41, 42, 43, 44, 45])
    TextStream(session, tokenizer, Request(PROMPT, max_new_tokens=3)).finish()
    assert session.cached_ids == [*PROMPT, 40, 41]
    session.calls.clear()
    longer = [*PROMPT, 40, 99, 98]
    result = TextStream(session, tokenizer, Request(longer, max_new_tokens=1)).finish()
    assert session.calls == [("truncate", 4), ("prefill", [99, 98])]
    assert result.timings.reused_tokens == 4
    assert session.cached_ids == longer


def test_the_last_token_of_a_known_prompt_is_run_again(tokenizer: Tokenizer) -> None:
    """Its logits are needed, and the session does not keep them."""
    session = scripted(PROMPT, [40, 41])
    first = TextStream(session, tokenizer, Request(PROMPT, max_new_tokens=1)).finish()
    session.calls.clear()
    again = TextStream(session, tokenizer, Request(PROMPT, max_new_tokens=1)).finish()
    assert again.ids == first.ids
    assert session.executed() == [("prefill", PROMPT[-1:])]


def test_repetition_penalty_knows_the_prompt(tokenizer: Tokenizer) -> None:
    def first(prompt: list[int]) -> int:
        session = scripted(prompt, [50], runner_up=60)  # logits 1.0 and 0.5
        request = Request(prompt, max_new_tokens=1, sampling=Sampling(repetition_penalty=4.0))
        return TextStream(session, tokenizer, request).finish().ids[0]

    assert first([10, 11]) == 50
    assert first([10, 50]) == 60


def test_a_drawn_answer_repeats_with_its_seed(tokenizer: Tokenizer) -> None:
    def drawn(seed: int | None) -> tuple[tuple[int, ...], int]:
        session = scripted(PROMPT, [40] * 30)
        request = Request(PROMPT, max_new_tokens=30, sampling=Sampling(1.0, seed=seed))
        result = TextStream(session, tokenizer, request).finish()
        return result.ids, result.seed

    ids, seed = drawn(None)
    assert drawn(seed) == (ids, seed)
    assert drawn(seed + 1)[0] != ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": []}, "the prompt is empty"),
        ({"prompt_ids": [1], "max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt_ids": [1], "stop": ("a", "")}, "stop string is empty"),
    ],
)
def test_impossible_requests(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(**arguments)  # type: ignore[arg-type]


def test_broken_output_is_shown_and_not_held_for_ever(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, merges=False))
    broken = ids_of(tokenizer, "é")[:1]  # the first byte of a character, again and again
    stream = tokenizer.stream([])
    pieces = [stream.push(token) for token in broken * 100]
    assert sum(map(len, pieces)) > 50
    assert max(map(len, pieces)) < 20
    text = "".join(stream.push(token) for token in ids_of(tokenizer, "well — again"))
    assert text.lstrip("\ufffd") == "well — again"
