"""Thoughts and answers: however the text is cut into pieces, the same two texts come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from awq_edge.runtime.generation import Request, TextStream, ThoughtRules
from awq_edge.runtime.session import Float32
from awq_edge.runtime.thoughts import ThoughtMarkers, find_markers
from awq_edge.runtime.tokenizer import Tokenizer
from tests.runtime.fakes import ScriptedSession, scripted

THINK = ThoughtMarkers("<think>", "</think>")
GRANITE = ThoughtMarkers("<think>", "</think>", wrapper=("<response>", "</response>"))
MISTRAL = ThoughtMarkers("[THINK]", "[/THINK]")
CHANNELS = ThoughtMarkers("<|channel|>", "", channels=True)
HARMONY = (
    "<|channel|>analysis<|message|>2 + 2 is 4.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4."
)
# (markers, what the prompt has of the turn, what the model writes, thoughts, answer)
CASES = {
    "opened in the prompt": (
        THINK,
        "<|im_start|>assistant\n<think>\n",
        "Okay, let me</think>\n\nThe answer is 4.",
        "Okay, let me",
        "The answer is 4.",
    ),
    "opened by the model": (THINK, "", "<think>\nHm.\n</think>\n\nFour.", "Hm.", "Four."),
    "blanks before the marker": (THINK, "", "\n <think>Hm.</think>Four.", "Hm.", "Four."),
    "opened twice": (THINK, "<think>\n", "<think>\nHm.</think>Four.", "Hm.", "Four."),
    "no thoughts": (THINK, "", "Four.", "", "Four."),
    "blanks, no thoughts": (THINK, "", "\n Four.", "", "\n Four."),
    "empty thoughts": (THINK, "", "<think>\n\n</think>\n\nFour.", "", "Four."),
    "switched off": (THINK, "<think>\n\n</think>\n\n", "\nFour.", "", "Four."),
    "continued answer": (THINK, "<think>\na</think>\n\nFour", " and", "", " and"),
    "never closed": (THINK, "<think>", "Okay, let me see \n", "Okay, let me see", ""),
    "cut inside the marker": (THINK, "<think>", "Okay</thi", "Okay</thi", ""),
    "almost a marker": (THINK, "<think>", "a </b> </thin </think>b", "a </b> </thin", "b"),
    "almost opened": (THINK, "", "<thin>x", "", "<thin>x"),
    "markers in the answer": (THINK, "", "I use <think>x</think>.", "", "I use <think>x</think>."),
    "markers behind thoughts": (THINK, "<think>", "a</think>b</think>c", "a", "b</think>c"),
    "the user said it": (THINK, "assistant: ", "Fine.</think>", "", "Fine.</think>"),
    "continued thoughts": (THINK, "<think>Let me", " see</think>Four.", " see", "Four."),
    "a wrapped answer": (
        GRANITE,
        "",
        "<think>Hm.</think>\n<response>\nFour. </resp\n</response>\nmore",
        "Hm.",
        "Four. </resp",
    ),
    "a wrapper that is cut": (GRANITE, "", "<think>a</think><response>b\n", "a", "b"),
    "no wrapper": (GRANITE, "", "<think>a</think><resp b</response>", "a", "<resp b</response>"),
    "channels": (CHANNELS, "<|start|>assistant", HARMONY, "2 + 2 is 4.", "It is 4."),
    "channels without thoughts": (
        CHANNELS,
        "<|start|>assistant",
        "<|channel|>final<|message|>It is 4.",
        "",
        "It is 4.",
    ),
    "channel in the prompt": (
        CHANNELS,
        "<|start|>assistant<|channel|>analysis<|message|>",
        HARMONY.partition("<|message|>")[2],
        "2 + 2 is 4.",
        "It is 4.",
    ),
    "channels cut": (CHANNELS, "<|start|>assistant", HARMONY[:39], "2 + 2 is ", ""),
    "channels not kept to": (CHANNELS, "<|start|>assistant", "Hello there", "", "Hello there"),
}


def split(
    markers: ThoughtMarkers, beginning: str, pieces: Sequence[str], *, special: bool = False
) -> tuple[str, str]:
    """special: markers come whole, as special tokens do."""
    splitter = markers.splitter(beginning)
    found = [
        piece
        for text in pieces
        for piece in splitter.push(text, special=special and text in markers.texts)
    ]
    found += splitter.flush()
    assert all(piece.text for piece in found)
    thoughts = "".join(piece.text for piece in found if piece.thought)
    return thoughts, "".join(piece.text for piece in found if not piece.thought)


@pytest.mark.parametrize("name", CASES)
def test_thoughts_are_told_from_the_answer(name: str) -> None:
    markers, beginning, text, thoughts, answer = CASES[name]
    assert split(markers, beginning, [text]) == (thoughts, answer)
    assert split(markers, beginning, list(text)) == (thoughts, answer)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), data=st.data())
def test_pieces_make_no_difference(name: str, data: st.DataObject) -> None:
    markers, beginning, text, thoughts, answer = CASES[name]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(markers, beginning, pieces) == (thoughts, answer)


def test_special_tokens_count_and_are_not_shown() -> None:
    pieces = ["[THINK]", "Hm", "[/THINK]", " Four", "[THINK]", "."]
    assert split(MISTRAL, "", pieces, special=True) == ("Hm", "Four.")
    assert split(MISTRAL, "", pieces) == ("Hm", "Four[THINK].")


@pytest.mark.parametrize(
    ("source", "added", "opening"),
    [
        ("{{ messages }}", (), None),
        ("{% if '</think>' in content %}", (), "<think>"),
        ("{{ '<think>\n' }}", (), "<think>"),
        ("[THINK]...[/THINK]", (), "[THINK]"),
        ("plain", ("<think>", "</think>"), "<think>"),
        ("plain", ("<think>",), None),
        ("<|channel|>analysis<|message|>", (), "<|channel|>"),
        ("explains <|begin_of_thought|>, uses <think>", (), "<think>"),
    ],
)
def test_markers_of_templates_and_tokenizers(
    source: str, added: tuple[str, ...], opening: str | None
) -> None:
    found = find_markers(source, added)
    assert (None if found is None else found.opening) == opening


SPECIAL = ["</s>", "[THINK]", "[/THINK]", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a byte; ids 0 to 3 are special."""
    folder = tmp_path_factory.mktemp("bytes")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({t: i for i, t in enumerate([*SPECIAL, *letters])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def stream(
    tokenizer: Tokenizer, written: str, markers: ThoughtMarkers = THINK, **request: object
) -> TextStream:
    """What a model writes behind a prompt of three tokens, then </s>."""
    ids = tokenizer.encode(written, add_special_tokens=False)
    rules = ThoughtRules(markers, str(request.pop("beginning", "")))
    asked = Request((10, 11, 12), stop_token_ids=frozenset({0}), thoughts=rules, **request)  # type: ignore[arg-type]
    return TextStream(scripted((10, 11, 12), ids), tokenizer, asked)


def test_a_stream_gives_thoughts_and_answer(tokenizer: Tokenizer) -> None:
    made = stream(tokenizer, "<think>Hm. 🙂</think>\n\nFour.")
    pieces = list(made.pieces())
    result = made.result
    assert "".join(p.text for p in pieces if p.thought) == result.thoughts == "Hm. 🙂"
    assert "".join(p.text for p in pieces if not p.thought) == result.text == "Four."
    assert result.written == "<think>Hm. 🙂</think>\n\nFour."
    assert result.thought_tokens == len("<think>Hm. 🙂</think>".encode())
    assert len(pieces) > 8  # they come as they are written
    assert "".join(stream(tokenizer, "<think>Hm.</think>Four.")) == "Four."


def test_markers_that_are_special_tokens(tokenizer: Tokenizer) -> None:
    result = stream(tokenizer, "[THINK]Hm.[/THINK]Four.<|im_end|>", MISTRAL).finish()
    assert (result.thoughts, result.text) == ("Hm.", "Four.")
    assert result.thought_tokens == 5


def test_stop_strings_are_of_the_answer(tokenizer: Tokenizer) -> None:
    """A blank line is a common stop, and common in thoughts."""
    result = stream(tokenizer, "<think>a\n\nb</think>c\n\nd", stop=("\n\n",)).finish()
    assert (result.thoughts, result.text, result.stop_string) == ("a\n\nb", "c", "\n\n")


def test_a_stop_string_may_be_a_special_token(tokenizer: Tokenizer) -> None:
    result = stream(tokenizer, "Four.<|im_end|>\nuser", stop=("<|im_end|>",)).finish()
    assert (result.text, result.stop_string) == ("Four.", "<|im_end|>")
    assert result.finish_reason == "stop"
    longer = stream(tokenizer, "Four.<|im_end|>x<|im_end|>\nuser", stop=("<|im_end|>\n",)).finish()
    assert (longer.text, longer.stop_string) == ("Four.x", "<|im_end|>\n")


class OnlyDigits:
    """Implements `Constraint`: two digits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._digits = [tokenizer.token_id(d) for d in "0123456789"]
        self.seen: list[int] = []

    def mask(self, logits: Float32) -> Float32:
        masked = np.full_like(logits, -np.inf)
        masked[self._digits] = logits[self._digits]
        return masked

    def accept(self, token_id: int) -> bool:
        assert token_id in self._digits
        self.seen.append(token_id)
        return len(self.seen) == 2


@pytest.mark.parametrize(
    ("beginning", "written", "thoughts"),
    [
        ("<think>\n", "Hm.</think>abc", "Hm."),
        ("", "<think>Hm.</think>abc", "Hm."),
        ("", "abc", ""),
        ("<think>\n\n</think>\n\n", "<think>abc", ""),
        ("<think>", "never closed", "never closed"),
    ],
)
def test_a_constraint_holds_for_the_answer_alone(
    tokenizer: Tokenizer, beginning: str, written: str, thoughts: str
) -> None:
    constraint = OnlyDigits(tokenizer)
    made = stream(tokenizer, written, beginning=beginning, constraint=constraint, max_new_tokens=40)
    result = made.finish()
    assert result.thoughts.startswith(thoughts)
    closed = "never" not in written
    # Of digits that are equally likely the first is chosen.
    assert result.text == ("00" if closed else "")
    assert result.finish_reason == ("stop" if closed else "length")


def test_thoughts_do_not_end_a_constrained_answer(tokenizer: Tokenizer) -> None:
    """The end of the text is masked while there is no answer."""

    def following(ids: Sequence[int]) -> int:
        return 0

    session = ScriptedSession(following)
    rules = ThoughtRules(THINK, "<think>")
    request = Request(
        (10, 11, 12),
        max_new_tokens=5,
        stop_token_ids=frozenset({0}),
        thoughts=rules,
        constraint=OnlyDigits(tokenizer),
    )
    result = TextStream(session, tokenizer, request).finish()
    assert result.finish_reason == "length" and len(result.ids) == 5


def test_nothing_is_split_where_nothing_is_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>a</think>b", add_special_tokens=False)
    request = Request((10, 11, 12), stop_token_ids=frozenset({0}))
    result = TextStream(scripted((10, 11, 12), ids), tokenizer, request).finish()
    assert result.text == "<think>a</think>b" and result.thoughts == ""


def test_special_tokens_are_whole_and_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("[THINK]", add_special_tokens=False) == [1]
    assert tokenizer.decode([1]) == ""
