"""The calibration set: where its text comes from, and that a seed means the same every time."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import awq_edge
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.hub import resolve_model
from awq_edge.quantizer.calibration.text import CalibrationSet, load_calibration
from awq_edge.quantizer.report.schema import PACKAGED
from awq_edge.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(resolve_model("demo"))


def draw(
    tokenizer: Tokenizer,
    source: str | Path,
    samples: int = 4,
    length: int = 32,
    seed: int = 0,
    max_positions: int = 1024,
) -> CalibrationSet:
    return load_calibration(
        source,
        tokenizer,
        samples=samples,
        length=length,
        seed=seed,
        max_positions=max_positions,
    )


def test_packaged_text_is_enough_for_the_defaults(tokenizer: Tokenizer) -> None:
    drawn = draw(tokenizer, PACKAGED, samples=128, length=512)
    assert drawn.ids.shape == (128, 512)
    assert drawn.ids.dtype == np.int64
    assert len({row.tobytes() for row in drawn.ids}) == 128
    assert drawn.source == "packaged"


def test_a_seed_repeats_and_another_differs(tokenizer: Tokenizer) -> None:
    first = draw(tokenizer, PACKAGED, seed=1)
    assert first.sha256 == draw(tokenizer, PACKAGED, seed=1).sha256
    assert first.sha256 != draw(tokenizer, PACKAGED, seed=2).sha256


def test_packaged_text_is_broad_from_its_beginning_on() -> None:
    """Every quarter of it has code, several scripts of writing, and prose; its card is its own."""
    path = Path(awq_edge.__file__).parent / "data" / "calibration.txt"
    text = path.read_text(encoding="utf-8")
    size = len(text) // 4
    for part in (text[start : start + size] for start in range(0, 4 * size, size)):
        assert re.search(r"^    return |^        self\.", part, re.MULTILINE), "Python"
        assert re.search(r"[\u0370-\u1fff]{3}", part), "Greek to Thai"
        assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{3}", part), "CJK"
        assert re.search(r"\b(and|the) [a-z]+ (of|to) ", part), "English"
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card


def test_sequences_begin_as_the_model_expects(tokenizer: Tokenizer) -> None:
    """The demo model's tokenizer puts BOS before a text; then text follows that is the source's."""
    drawn = draw(tokenizer, PACKAGED)
    assert (drawn.ids[:, 0] == tokenizer.bos_token_id).all()
    assert (drawn.ids[:, 1:] != tokenizer.bos_token_id).all()


def test_length_is_cut_to_the_model(tokenizer: Tokenizer) -> None:
    assert draw(tokenizer, PACKAGED, length=512, max_positions=40).ids.shape == (4, 40)


def test_a_file_and_a_directory(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha beta gamma " * 200)
    (tmp_path / "b.md").write_text("delta epsilon zeta " * 200)
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\xfd")
    one = draw(tokenizer, tmp_path / "a.txt", samples=8)
    assert "alpha" in tokenizer.decode(one.ids[0].tolist())
    both = draw(tokenizer, tmp_path, samples=40)
    text = " ".join(tokenizer.decode(row.tolist()) for row in both.ids)
    assert "alpha" in text and "epsilon" in text
    assert both.source == str(tmp_path)
    assert [file.name for file in both.files] == ["a.txt", "b.md"]
    assert all(file.whole and file.documents == 1 for file in both.files)
    assert both.files[0].sha256 == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()
    assert dict(both.left_out) == {"c.bin": "not .txt, .md, .jsonl, .json, .ndjson"}


def test_a_short_text_gives_overlapping_sequences(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one two three four five six seven eight nine ten " * 5)
    assert draw(tokenizer, path, samples=50, length=16).ids.shape == (50, 16)


def test_a_character_at_the_cut_is_no_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "dashes.txt"
    path.write_text("—" * 100_000, encoding="utf-8")
    assert draw(tokenizer, path, samples=1, length=8).ids.shape == (1, 8)


def test_json_lines_are_their_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Equal tokens to those of the plain texts: no braces, no escapes."""
    texts = [f'Caf\u00e9 number {i} sells "tea".\nAnd cakes.' for i in range(60)]
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join(texts), encoding="utf-8")
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    expected = draw(tokenizer, plain).ids
    assert (draw(tokenizer, lines).ids == expected).all()
    assert draw(tokenizer, lines).files[0].documents == 60
    for name, content in (
        ("array.json", json.dumps([{"text": text} for text in texts], indent=1)),
        ("strings.json", json.dumps(texts)),
        ("lines.data", lines.read_text()),  # told by its content
        ("marked.jsonl", "\ufeff" + lines.read_text()),
        ("windows.jsonl", lines.read_text().replace("\n", "\r\n")),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        assert (draw(tokenizer, tmp_path / name).ids == expected).all(), name


def test_a_long_json_lines_file_is_cut_behind_a_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with open(path, "w") as file:
        for i in range(60_000):
            file.write(json.dumps({"text": f"Line {i} of a text that is long."}) + "\n")
    (read,) = draw(tokenizer, path).files
    assert not read.whole
    assert read.bytes == 4 * 32 * 48 < path.stat().st_size
    assert read.documents == len(path.read_bytes()[: read.bytes].splitlines()) - 1


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_model("demo"), model)
    (model / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    )
    chat = Tokenizer(model)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Who is {i}?"},
                {"role": "assistant", "content": "A boy."},
            ]
        }
        for i in range(60)
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = draw(chat, path, samples=60)
    words = " ".join(chat.decode(row.tolist()) for row in drawn.ids)
    assert "[user] Who is" in words and "[assistant] A boy." in words and "{" not in words
    # One BOS, before the sample; those of the template would stand in the middle of it.
    assert (drawn.ids[:, 0] == chat.bos_token_id).all()
    assert (drawn.ids[:, 1:] != chat.bos_token_id).all()
    shared = tmp_path / "sharegpt.json"
    names = {"user": "human", "assistant": "gpt"}
    turns = []
    for row in rows:
        talk = [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]
        turns.append({"conversations": talk})
    shared.write_text(json.dumps(turns))
    assert (draw(chat, shared, samples=60).ids == drawn.ids).all()
    (model / "chat_template.jinja").unlink()
    plain = Tokenizer(model)
    with pytest.raises(
        ConfigError, match=r"chat.jsonl: line 1: a conversation, and .* has no chat"
    ):
        draw(plain, path)


GZIP = gzip.compress(b"some text " * 100, mtime=0)
SAFETENSORS = (24).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}   ' + b"\x00" * 64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"PAR1" + bytes(40), "is a Parquet file, not a text"),
        ("a.txt", GZIP, "is compressed by gzip"),
        ("a.jsonl", GZIP, "is compressed by gzip"),
        ("a.txt", b"\x28\xb5\x2f\xfdrest", "is compressed by zstd"),
        ("a.txt", SAFETENSORS, "is a safetensors file"),
        ("a.txt", b"text " * 9 + b"\x00\x01\x02" * 9, r"is binary data \(a zero byte at 45\)"),
        ("a.csv", b"just words", "is a table"),
        ("a.txt", b'id,text\n1,"a, b"\n2,c\n3,"d\ne"\n', "is a table"),
        ("a.txt", b"id\ttext\n1\ta\n2\tb\n", "is a table"),
        ("a.txt", "text".encode("utf-16"), "the text is UTF-16, not UTF-8; convert it .iconv"),
        ("a.txt", ("text " * 40).encode("utf-16-le"), "every other byte is 0, as in UTF-16"),
        ("a.txt", "text".encode("utf-32"), "the text is UTF-32"),
        ("a.txt", "café au lait".encode("latin-1"), "not UTF-8 at byte 3; convert it"),
        ("a.txt", b" \n\t\r\n", "the file is blank"),
        ("a.txt", b"", "the file is blank"),
        ("a.jsonl", b'{"text": ""}\n{"text": "  "}\n', "none of its 2 rows has a text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": 3}\n', "row 1: 'text' is a number, not a string"),
        (
            "a.jsonl",
            b'{"prompt": "a", "answer": "b"}\n',
            r"neither 'text' nor .* \('prompt', 'answer'\)",
        ),
        ("a.jsonl", b"words that are no JSON", "is not valid JSON"),
        ("a.json", b"[1, 2]", "row 1: a number is no document"),
        ("a.json", b"[" * 100_000, "nested deeper than"),
        ("a.json", b"[]", "none of its 0 rows has a text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "half of a surrogate pair"),
        ("a.jsonl", b'{"messages": []}', "'messages': an empty array where messages belong"),
        ("a.jsonl", b'{"messages": [{"content": "a"}]}', "message 1 has no role"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": 1}]}',
            "content of message 1 is a number",
        ),
    ],
)
def test_what_is_no_text_is_refused_by_name(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        draw(tokenizer, path)
    assert str(caught.value).startswith(f"--calibration {path}")


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world\nHow, now\nBrown, cow\n",  # as many commas a line as a table
        "def f(a, b):\n    return a, b\n",
        '{ "this is": a brace of prose }\nand more',
        "form feed \x0c and escape \x1b[1m are text",
    ],
)
def test_what_is_text_is_read_as_it_is(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text * 20, encoding="utf-8")
    words = tokenizer.decode(draw(tokenizer, path, samples=20, length=8).ids.flatten().tolist())
    assert text.split()[0] in words
    assert draw(tokenizer, path, length=8).files[0].documents == 1


def test_a_folder_says_what_it_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha beta gamma " * 200)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "delta epsilon " * 200}))
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "info.json").write_text('{"version": 1}')
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + bytes(40))
    (tmp_path / "zipped.txt").write_bytes(GZIP)
    (tmp_path / "more").mkdir()
    drawn = draw(tokenizer, tmp_path, samples=40)
    assert [file.name for file in drawn.files] == ["a.txt", "b.jsonl"]
    assert dict(drawn.left_out) == {
        "blank.txt": "the file is blank",
        "info.json": "row 1: neither 'text' nor 'messages' among its keys ('version')",
        "more": "a folder",
        "rows.parquet": "not .txt, .md, .jsonl, .json, .ndjson",
        "zipped.txt": "is compressed by gzip, not a text",
    }
    # Damage is no reason to leave a file out without a word.
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(ConfigError, match=r"c\.jsonl: line 2 is not valid JSON"):
        draw(tokenizer, tmp_path)
    (tmp_path / "c.jsonl").unlink()
    os.mkfifo(tmp_path / "d.txt")
    with pytest.raises(ConfigError, match=r"d\.txt is a pipe, not a plain file"):
        draw(tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist; give a text file"), (b"\xff\xfc", "not UTF-8"), (b"few", "tokens")],
)
def test_bad_text_is_one_clear_error(
    tokenizer: Tokenizer, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        draw(tokenizer, path)


def test_an_empty_directory_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no text in the folder \(it is empty\)"):
        draw(tokenizer, tmp_path)


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_data_set_is_streamed(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        seen.update(options, name=name, config=config)
        return ({"text": f"row {i} of a data set"} for i in range(10_000))

    fake_datasets(monkeypatch, load_dataset)
    monkeypatch.setenv("HF_TOKEN", "secret")
    drawn = draw(tokenizer, "hub:org/data:config:validation")
    assert "of a data set" in tokenizer.decode(drawn.ids[0].tolist())
    assert seen == {
        "name": "org/data",
        "config": "config",
        "split": "validation",
        "streaming": True,
        "token": "secret",
    }


def test_a_hub_that_cannot_be_reached_is_one_line(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        raise ConnectionError("no route\nto host")

    fake_datasets(monkeypatch, load_dataset)
    with pytest.raises(ModelError, match=r"'org/data' cannot be read \(ConnectionError: no route"):
        draw(tokenizer, "hub:org/data")


def test_a_data_set_without_text_names_its_columns(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_datasets(monkeypatch, lambda *_, **__: iter([{"image": 1, "label": 2}]))
    with pytest.raises(ConfigError, match=r"row 1: neither 'text' nor .* \('image', 'label'\)"):
        draw(tokenizer, "hub:org/data")


def test_without_the_package_the_way_out_is_named(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'awq-edge\[hub\]'"):
        draw(tokenizer, "hub:org/data")
