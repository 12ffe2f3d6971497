"""The reader of files from outside, and the typed view of what they hold."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Literal

import pytest

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.input_files import (
    MAX_DEPTH,
    open_plain,
    parse_json,
    parse_json_value,
    read_json,
    read_toml,
    show,
)
from awq_edge.artifacts.schema import Manifest, parse_manifest
from awq_edge.errors import ArtifactError, ConfigError, ModelError

REFUSED_JSON = [
    ("", "is not valid JSON"),
    ("{", "is not valid JSON"),
    ("[" * 100_000, "is nested deeper than 64 levels"),
    ('{"a":' * 100_000, "is nested deeper than 64 levels"),
    ("[" * 65 + "]" * 65, "is nested deeper than 64 levels"),
    ('{"a": [{"b": NaN}]}', r"'a\[0\].b' is NaN or infinite"),
    ('{"a": -Infinity}', "'a' is NaN or infinite"),
    ('{"a": 1e999}', "'a' is NaN or infinite"),
    ('{"a": 1, "a": 2}', "key 'a' is there twice, with two values"),
    ('{"a": "\\ud800"}', "half of a surrogate pair"),
    ('{"\\udfff": 1}', "half of a surrogate pair"),
    ('{"a": ' + "9" * 5000 + "}", "is not valid JSON"),
    (b'{"a": "\xff"}', "is not UTF-8: byte 7"),
    (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
    ("\ufeff{}", "is not valid JSON"),
    ("[1]", "holds a list, not a JSON object"),
    ("null", "holds null, not a JSON object"),
    ("3", "holds a number, not a JSON object"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED_JSON)
def test_what_is_no_sound_json_object_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^m\.json:? .*{message}") as caught:
        parse_json(text, "m.json", ArtifactError)
    assert len(str(caught.value)) < 300


def test_what_is_sound_is_read_as_the_standard_library_reads_it() -> None:
    text = '{"a": [2.5, true, "\\ud83d\\ude00"], "b": {"c": {}}, "a": [2.5, true, "\U0001f600"]}'
    assert parse_json(text, "m.json") == json.loads(text)
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json_value(deep, "m.json") == json.loads(deep)


def test_only_plain_files_are_read_and_none_is_waited_for(tmp_path: Path) -> None:
    pipe, folder, link = tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(pipe)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    try:
        for path, message in [
            (pipe, "is a pipe, not a plain file"),
            (link, "is a pipe, not a plain file"),
            (folder, "is a folder, not a plain file"),
            (tmp_path / "socket", "is not a plain file"),
            (Path("/dev/zero"), "is a device or socket, not a plain file"),
            (tmp_path / "none", "does not exist"),
            (pipe / "below", "cannot be read: Not a directory"),
            (tmp_path / ("x" * 300), "cannot be read: File name too long"),
            (Path("a\0b"), "its name has a null byte"),
        ]:
            with pytest.raises(ModelError, match=message):
                open_plain(path)
    finally:
        listener.close()


def test_a_file_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole: takes no room
    with pytest.raises(ModelError, match="has 1,099,511,627,776 bytes; a file of its kind has"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = inf", "'a' is NaN or infinite"),
        ("a = [1.0, nan]", r"'a\[1\]' is NaN or infinite"),
        ("a = " + "[" * 5000, "nested deeper than|not valid TOML"),
        ("a = " + "[" * 70 + "]" * 70, "nested deeper than"),
        ("a = ", "not valid TOML"),
        ("a = 1\na = 2", "not valid TOML"),
    ],
)
def test_toml_is_held_to_the_same(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_toml(path, error=ConfigError)


def test_models_take_types_as_they_are_written() -> None:
    class Part(Manifest):
        noun = "a part"

        format: Literal["part"] = "part"
        format_version: Literal[3] = 3
        size: int
        names: tuple[str, ...] = ()

    def parse(text: str) -> Part:
        return parse_manifest(Part, text, "p.json")

    assert parse('{"size": 3, "names": ["a"]}').names == ("a",)
    for text in ('{"size": true}', '{"size": "3"}', '{"size": 3.0}', '{"size": null}'):
        with pytest.raises(ArtifactError, match=r"^p\.json is not a part \(size: .*make it again"):
            parse(text)
    with pytest.raises(ArtifactError, match=r"\(a\\x1b\[2J: Extra"):
        parse('{"size": 3, "a\\u001b[2J": 1}')
    with pytest.raises(ArtifactError, match=r"is not a part \(format: 'else', not 'part'\)"):
        parse('{"format": "else", "format_version": 4, "sizes": 3}')
    with pytest.raises(ArtifactError, match=r"format_version 4, this awq-edge \(.*\) reads 3"):
        parse('{"format_version": 4, "sizes": 3}')


def test_values_are_shown_on_one_clean_line() -> None:
    assert show("a\x1b]0;OWNED\x07\n\u202e") == "'a\\x1b]0;OWNED\\x07 \\u202e'"
    assert show([True, None]) == "[true, null]"
    assert len(show("x" * 10_000)) < 100
    assert len(show(10**4000)) < 100


WRONG: list[tuple[str, Any, list[Any]]] = [
    ("size", 8, [0, -1, True, 4.0, "4", None, [4], {}, 9, 10**400]),
    ("number", 1.5, [0, -1.0, True, "1", None, [], float("inf"), float("nan"), 1e13, 10**400]),
    ("flag", True, [1, 0, "true", None, [], [1, 2]]),
    ("text", "a", [1, True, None, ["a"]]),
    ("table", {}, [1, "x", [], True]),
    ("texts", ["a"], ["a", [1], {"a": 1}, [None]]),
    ("token_ids", [1, 2], ["", "1", True, 1.0, -1, [True], [[1]], {}, 1 << 31]),
    ("token_id", 1, ["", True, 1.0, -1, [1]]),
]


@pytest.mark.parametrize(("method", "right", "wrong"), WRONG)
def test_a_key_of_the_wrong_type_or_size_is_named(method: str, right: Any, wrong: Any) -> None:
    arguments = (8,) if method == "size" else ()

    def read(value: Any) -> Any:
        keys = ConfigKeys({"k": value}, "c.json", prefix="text_config.")
        return getattr(keys, method)("k", *arguments)

    read(right)
    for value in wrong:
        with pytest.raises(ModelError, match=r"^c\.json: 'text_config\.k' must be ") as caught:
            read(value)
        assert len(str(caught.value)) < 200
