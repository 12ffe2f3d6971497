"""The calibration set: where its text comes from, and that a seed means the same every time."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge.errors import ConfigError, ModelError
from awq_edge.model_files import resolve_model
from awq_edge.quantizer.calibration import CalibrationSet, load_calibration
from awq_edge.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(resolve_model("demo"))


def draw(
    tokenizer: Tokenizer,
    source: str | Path | None,
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
    drawn = draw(tokenizer, None, samples=128, length=512)
    assert drawn.ids.shape == (128, 512)
    assert drawn.ids.dtype == np.int64
    assert len({row.tobytes() for row in drawn.ids}) == 128
    assert drawn.source == "packaged"


def test_a_seed_repeats_and_another_differs(tokenizer: Tokenizer) -> None:
    first = draw(tokenizer, None, seed=1)
    assert first.sha256 == draw(tokenizer, None, seed=1).sha256
    assert first.sha256 != draw(tokenizer, None, seed=2).sha256


def test_sequences_begin_as_the_model_expects(tokenizer: Tokenizer) -> None:
    """The demo model's tokenizer puts BOS before a text; then text follows that is the source's."""
    drawn = draw(tokenizer, None)
    assert (drawn.ids[:, 0] == tokenizer.bos_token_id).all()
    assert (drawn.ids[:, 1:] != tokenizer.bos_token_id).all()


def test_length_is_cut_to_the_model(tokenizer: Tokenizer) -> None:
    assert draw(tokenizer, None, length=512, max_positions=40).ids.shape == (4, 40)


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


def test_a_short_text_gives_overlapping_sequences(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one two three four five six seven eight nine ten " * 5)
    assert draw(tokenizer, path, samples=50, length=16).ids.shape == (50, 16)


def test_a_character_at_the_cut_is_no_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "dashes.txt"
    path.write_text("—" * 100_000, encoding="utf-8")
    assert draw(tokenizer, path, samples=1, length=8).ids.shape == (1, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist; give a text file"), (b"\xff\xfe", "not UTF-8"), (b"few", "tokens")],
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
    with pytest.raises(ConfigError, match=r"has no \.txt or \.md files"):
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
    with pytest.raises(ConfigError, match=r"no column of text, .* in image, label"):
        draw(tokenizer, "hub:org/data")


def test_without_the_package_the_way_out_is_named(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'awq-edge\[hub\]'"):
        draw(tokenizer, "hub:org/data")
