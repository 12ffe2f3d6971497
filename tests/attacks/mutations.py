"""Damage to files, seeded: what a disk, a download or somebody hostile does to an input."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

# In the place of any value of a JSON or TOML file.
WRONG_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 65_536, 10**9, 2**31, 2**63, 2**64, 10**30,
    0.0, -0.5, 0.5, 1.5, 64.0, 1e-45, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "0", "1", "1e-5", "true", "null", "\x1b[2J\x1b]0;OWNED\x07", "\u202egnp.exe",
    "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "a\0b", "é" * 3000, "x" * 70_000,
    "re:(a+)+$", "re:(", "re:(.|.)*!", "{{ 1/0 }}", "%s%n", "\ud800",
    [], {}, [[]], [None], [1, 2], [True], ["x"], [float("nan")], [10**9], {"a": 1}, {"": None},
    [[1]] * 3, {"content": 5}, {"type": "x"}, {"rope_type": "yarn"}, {"rope_type": "llama3"},
)  # fmt: skip
_DEEP = 100_000


def mutate(path: Path, rng: random.Random) -> str:
    """Damage one file. Returns what was done, in words."""
    kinds: list[Callable[[Path, random.Random], str]] = [_raw]
    if path.suffix == ".json":
        kinds = [_json_value] * 8 + [_json_structure] * 3 + [_json_text] * 2 + [_raw]
    elif path.suffix == ".safetensors":
        kinds = [_header_value] * 6 + [_header_length, _data, _data, _raw]
    elif path.suffix == ".toml":
        kinds = [_toml_value] * 6 + [_raw]
    elif path.suffix in (".jinja", ".txt"):
        kinds = [_raw]
    return f"{path.name}: {rng.choice(kinds)(path, rng)}"


def _json_value(path: Path, rng: random.Random) -> str:
    """One value becomes another, often of another type."""
    data = json.loads(path.read_text(encoding="utf-8"))
    what = change_value(data, rng)
    path.write_text(_dump(data), encoding="utf-8", errors="surrogatepass")
    return what


def change_value(data: Any, rng: random.Random) -> str:
    """Replace one value inside a JSON value by a wrong one. Returns where, and by what."""
    places = _places(data)
    if not places:
        return "nothing to change"
    holder, key, name = rng.choice(places)
    value = rng.choice(WRONG_VALUES)
    old = holder[key]
    roll = rng.random()
    if roll < 0.15 and isinstance(old, int) and not isinstance(old, bool):
        value = rng.choice([-old, old + 1, old * 2, old * 10**6, old // 2, float(old), str(old)])
    elif roll < 0.2:
        value = [old]
    elif roll < 0.25:
        other, other_key, _ = rng.choice(places)
        value = json.loads(json.dumps(other[other_key]))
    holder[key] = value
    return f"{name} = {ascii(value)[:60]}"


def _json_structure(path: Path, rng: random.Random) -> str:
    """A key goes, gets another name, or the whole becomes something else."""
    data = json.loads(path.read_text(encoding="utf-8"))
    places = [place for place in _places(data) if isinstance(place[0], dict)]
    if not places or rng.random() < 0.1:
        value = rng.choice([[], {}, None, 3, "x", [data], {"a": data}])
        path.write_text(_dump(value), encoding="utf-8")
        return f"whole = {ascii(value)[:40]}"
    holder, key, name = rng.choice(places)
    value = holder.pop(key)
    if rng.random() < 0.5:
        holder[rng.choice([key.upper(), f"{key} ", "", "x\x1b[1m", key[:-1]])] = value
        what = f"{name} renamed"
    else:
        what = f"{name} removed"
    path.write_text(_dump(data), encoding="utf-8")
    return what


def _json_text(path: Path, rng: random.Random) -> str:
    """The text of a JSON file, beyond what a value can say."""
    text = path.read_text(encoding="utf-8")
    begin = text.find("{") + 1
    inserts = {
        "deep list": f'"deep": {"[" * _DEEP}{"]" * _DEEP},',
        "deep list without an end": '"deep": ' + "[" * _DEEP,
        "deep objects": '{"a":' * _DEEP,
        "1e999": '"add_bos_token": 1e999,',
        "a number of 5,000 digits": f'"hidden_size": {"9" * 5000},',
        "a key twice": '"model_type": "x",',
        "a lone surrogate": '"model_name": "\\ud800",',
        "a comment": "// x\n",
        "a null byte": "\0",
    }
    what = rng.choice(sorted(inserts))
    path.write_text(text[:begin] + inserts[what] + text[begin:], encoding="utf-8")
    return what


def _toml_value(path: Path, rng: random.Random) -> str:
    """One value of a line KEY = VALUE becomes another."""
    lines = path.read_text(encoding="utf-8").splitlines()
    places = [i for i, line in enumerate(lines) if re.match(r"\s*[\w.-]+\s*=", line)]
    where = rng.choice(places)
    key = lines[where].partition("=")[0]
    value = rng.choice(
        ["true", "-1", "0", "1e999", "inf", "nan", "[]", "{}", '""', '"x"', "10000000000", "1.5",
         '"\\u001b[2J"', "[" * 5000, "1979-05-27", '"1 PB"', '"-8 GB"', '"../../x.toml"', "0x10",
         '"1e999 GB"', '"nan GB/s"', "9" * 5000, "[[1]]", "{a = 1}"]
    )  # fmt: skip
    lines[where] = f"{key}= {value}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{key.strip()} = {value[:40]}"


def _header_value(path: Path, rng: random.Random) -> str:
    """One value of a safetensors header; lengths follow, data stays."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    if rng.random() < 0.3:
        name = rng.choice([name for name in header if name != "__metadata__"])
        wrong = [
            [],
            [0, 1],
            [-8, 0],
            [0, 2**63],
            [2**62, 2**62 + 8],
            [1, 1],
            ["0", "8"],
            [0.0, 8.0],
        ]
        shapes = [[], [0], [-1], [2**40, 2**40], [True], [1] * 100, ["64", "64"], [64.0], 64]
        key, values = rng.choice([("data_offsets", wrong), ("shape", shapes)])
        value = rng.choice(values)
        header[name][key] = value
        what = f"{name}.{key} = {value}"
    elif rng.random() < 0.3:
        same = [("F32", "I32"), ("F16", "BF16", "I16"), ("I64", "F64"), ("U8", "I8", "BOOL")]
        name = rng.choice([name for name in header if name != "__metadata__"])
        old = header[name]["dtype"]
        others = [t for group in same for t in group if old in group and t != old] or ["F8_E4M3"]
        header[name]["dtype"] = rng.choice(others)
        what = f"{name} is {header[name]['dtype']}"
    elif rng.random() < 0.3:
        names = [name for name in header if name != "__metadata__"]
        first, second = rng.sample(names, 2) if len(names) > 1 else (names[0], names[0])
        header[first], header[second] = header[second], header[first]
        what = f"{first} and {second} swapped"
    else:
        what = change_value(header, rng)
    text = _dump(header).encode("utf-8", errors="surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return f"header: {what[:80]}"


def _header_length(path: Path, rng: random.Random) -> str:
    raw = path.read_bytes()
    length = rng.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1, len(raw), len(raw) - 8, 100_000_001])
    path.write_bytes(struct.pack("<Q", length) + raw[8:])
    return f"header length {length}"


def _data(path: Path, rng: random.Random) -> str:
    """The data of tensors: cut, prolonged, zeroed, or all ones bits, which are NaN."""
    raw = bytearray(path.read_bytes())
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    kind = rng.choice(["cut", "longer", "zeros", "ones", "noise"])
    if kind == "cut":
        path.write_bytes(raw[: rng.randrange(begin, len(raw))])
    elif kind == "longer":
        path.write_bytes(raw + bytes(rng.choice([1, 8, 4096])))
    else:
        where = rng.randrange(begin, len(raw))
        size = min(len(raw) - where, rng.choice([1, 64, 4096, 1 << 20]))
        fill = {"zeros": bytes(size), "ones": b"\xff" * size, "noise": rng.randbytes(size)}[kind]
        raw[where : where + size] = fill
        path.write_bytes(raw)
    return f"data {kind}"


def _raw(path: Path, rng: random.Random) -> str:
    """Any file: bytes, or what stands in its place."""
    kinds = ["empty", "cut", "flip", "latin1", "bom", "utf16", "removed", "folder", "pipe",
             "device", "dangling", "zeros", "doubled", "loop"]  # fmt: skip
    kind = rng.choice(kinds)
    raw = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/full"]))
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind != "removed":
        flipped = bytearray(raw)
        for _ in range(rng.choice([1, 3, 30])):
            if flipped:
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        contents = {
            "empty": b"",
            "cut": raw[: rng.randrange(len(raw) + 1)],
            "flip": bytes(flipped),
            "latin1": b"\xe9\xff" + raw,
            "bom": b"\xef\xbb\xbf" + raw,
            "utf16": raw[:10_000].decode("latin1").encode("utf-16"),
            "zeros": bytes(len(raw)),
            "doubled": raw * 2,
        }
        path.write_bytes(contents[kind])
    return kind


def _places(data: Any, name: str = "") -> list[tuple[Any, Any, str]]:
    """Every value inside: its holder, its key there, and its dotted name."""
    found = []
    items = (
        list(data.items())
        if isinstance(data, dict)
        else list(enumerate(data))
        if isinstance(data, list)
        else []
    )
    for key, value in items[:400]:
        place = f"{name}.{key}" if name else str(key)
        found.append((data, key, place))
        found += _places(value, place)
    return found


def _dump(data: Any) -> str:
    return json.dumps(data)


def copy_tree(source: Path, target: Path) -> None:
    """A copy to be damaged."""
    shutil.copytree(source, target, symlinks=True)
