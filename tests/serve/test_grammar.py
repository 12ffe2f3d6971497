"""JSON schemas over a real vocabulary: whatever the model wants, the answer is of the schema."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from awq_edge.runtime.generation import Request
from awq_edge.runtime.model import Model, load
from awq_edge.runtime.sampling import Sampling
from awq_edge.serve.api_error import GrammarError

pytest.importorskip("llguidance", reason="needs the [serve] extra")

from awq_edge.serve.grammar import LARGEST_SCHEMA, Vocabulary, grammar_of

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_chat_bundle: Path) -> Iterator[Model]:
    with load(tiny_chat_bundle, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("seed", range(6))
def test_a_random_model_writes_json_of_the_schema(model: Model, seed: int) -> None:
    request = Request(
        model.tokenizer.encode("Once"),
        max_new_tokens=200,
        sampling=Sampling(1.0, seed=seed),
        stop_token_ids=model.stop_token_ids,
        constraint=Vocabulary(model).constraint(grammar_of(PERSON)),
    )
    result = model.stream_request(request).finish()
    assert result.finish_reason == "stop"
    person = json.loads(result.text)
    assert list(person) == ["name", "age", "pets"]
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 120
    assert 1 <= len(person["pets"]) <= 2
    assert set(person["pets"]) <= {"cat", "dog"}


def test_a_string_alone_and_any_object(model: Model) -> None:
    vocabulary = Vocabulary(model)
    for schema, kind in (({"enum": ["yes", "no"]}, str), ({"type": "object"}, dict)):
        request = Request(
            model.tokenizer.encode("Once"),
            max_new_tokens=230,
            stop_token_ids=model.stop_token_ids,
            sampling=Sampling(1.0, seed=1),
            constraint=vocabulary.constraint(grammar_of(schema)),
        )
        result = model.stream_request(request).finish()
        assert result.finish_reason == "stop"
        assert isinstance(json.loads(result.text), kind)


def test_tokens_have_the_bytes_that_they_add_to_a_text(model: Model) -> None:
    vocabulary = Vocabulary(model)
    text = "Lily met an old man, über 😀"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(vocabulary.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "foo"),
        ({"type": "object", "not": {}}, "not"),
        ({"$ref": "https://example.com/schema"}, "not present"),
        ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ({"description": "x" * LARGEST_SCHEMA}, "bytes, at most"),
        ({"enum": ["\ud800"]}, "not supported"),
    ],
)
def test_schemas_that_are_refused(schema: dict[str, object], words: str) -> None:
    with pytest.raises(GrammarError, match="the JSON schema") as refused:
        grammar_of(schema)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 47569433},  # a state for each remainder
        {"allOf": [{"type": "string", "pattern": f"a.{{{n}}}b"} for n in range(1, 30)]},
    ],
    ids=["multipleOf", "allOf"],
)
def test_a_schema_that_would_compile_for_ever_is_refused_in_time(schema: dict[str, object]) -> None:
    with pytest.raises(GrammarError, match="to compile"):
        grammar_of(schema)


def test_a_schema_that_refers_to_itself_is_refused_without_a_dump() -> None:
    with pytest.raises(GrammarError) as refused:
        grammar_of({"$ref": "#"})
    assert "<state>" not in str(refused.value) and len(str(refused.value)) < 300


def test_a_schema_cannot_change_how_it_is_read() -> None:
    schema: dict[str, object] = {"not": {}, "x-guidance": {"lenient": True}}
    with pytest.raises(GrammarError, match="not"):
        grammar_of(schema)


def test_it_needs_no_torch() -> None:
    code = "import sys, awq_edge.serve.server; print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
