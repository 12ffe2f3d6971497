"""Calibration samples with images: what they hold, that they count, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from awq_edge.errors import ConfigError, ModelError
from awq_edge.quantizer.calibration.pictures import QUESTION, load_pictures
from awq_edge.runtime.tokenizer import Tokenizer
from tests.arch_configs import AFTER_IMAGE, BEFORE_IMAGE, IMAGE_TOKEN

from .conftest import build_model, save_model
from .vision_models import drawn, picture_folder, quantize


def test_samples_hold_prompt_image_answer_and_text(llava: Path, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", seed=0, count=1)
    (folder / "0.txt").write_text("What is it?\nA tree.\n")
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 200)
    calibration = drawn(llava, text, folder, samples=2, length=80)
    tokenizer = Tokenizer(llava)
    start = [IMAGE_TOKEN] * 16 + tokenizer.encode("\nWhat is it?\nA tree.")
    with_image, plain = calibration.ids.tolist()
    assert with_image[: len(start)] == start and len(with_image) == 80
    assert with_image[len(start) :] == tokenizer.encode("abcdefgh" * 10)[: 80 - len(start)]
    assert plain == tokenizer.encode("abcdefgh" * 10)
    assert calibration.source == f"{text}; 1 of 2 samples with pictures of {folder}"


def test_samples_follow_the_chat_template(calibration_text: Path, tmp_path: Path) -> None:
    path = save_model(build_model("qwen2_vl"), tmp_path / "model")
    bare = drawn(path, calibration_text, samples=1).ids[0].tolist()
    assert bare[0] == BEFORE_IMAGE and bare[1] == IMAGE_TOKEN
    template = (
        "{% for m in messages %}{{ '@' + m.role + ':' }}{% for c in m.content %}{% if c.type =="
        " 'image' %}<before><image><after>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}@assistant:{% endif %}"
    )
    (path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    ids = drawn(path, calibration_text, samples=1).ids[0].tolist()
    tokenizer = Tokenizer(path)
    start = [*tokenizer.encode("@user:"), BEFORE_IMAGE, IMAGE_TOKEN]
    assert ids[: len(start)] == start
    behind = ids[ids.index(AFTER_IMAGE) + 1 :]
    words = tokenizer.encode(f"{QUESTION}@assistant:")
    assert behind[: len(words)] == words
    # One that has no room for an image is not used.
    (path / "chat_template.json").write_text(
        json.dumps({"chat_template": "{{ messages[0].role }}"})
    )
    assert drawn(path, calibration_text, samples=1).ids[0].tolist() == bare


def test_images_take_at_most_half_of_a_sample_where_their_size_decides(
    calibration_text: Path, tmp_path: Path
) -> None:
    path = save_model(build_model("qwen2_vl"), tmp_path / "model")
    calibration = drawn(path, calibration_text, samples=8, length=120)
    assert calibration.ids.shape == (8, 120)
    tokens = (calibration.ids[::2] == IMAGE_TOKEN).sum(axis=1)
    assert (tokens <= 60).all() and (tokens > 30).all()


def test_samples_grow_where_an_image_does_not_fit(llava: Path, calibration_text: Path) -> None:
    """16 image tokens, the question, and 32 of text."""
    calibration = drawn(llava, calibration_text, samples=2, length=20)
    words = len(Tokenizer(llava).encode(f"\n{QUESTION}\n"))
    assert calibration.ids.shape == (2, 16 + words + 32)


def test_a_seed_repeats_drawn_pictures(llava: Path, calibration_text: Path) -> None:
    def sha256(seed: int) -> str:
        return drawn(llava, calibration_text, samples=2, length=64, seed=seed).sha256

    assert sha256(3) == sha256(3)
    assert sha256(3) != sha256(4)
    pictures = load_pictures(None, 8, np.random.default_rng(0))
    assert len({np.asarray(p.image).tobytes() for p in pictures}) == 8
    # Not flat: a tower would see nothing.
    assert min(float(np.asarray(p.image).std()) for p in pictures) > 5


def test_other_images_give_other_statistics(
    vision_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """The token ids are the same; the errors that the report gives are over other inputs."""
    errors, hashes = [], []
    for name, seed in (("a", 0), ("b", 1), ("again", 0)):
        folder = picture_folder(tmp_path / f"images-{name}", seed, side=32)
        report = quantize(vision_model, tmp_path / name, calibration_text, images=folder).report
        assert report.calibration is not None and report.calibration.image_samples == 2
        assert report.calibration.image_tokens == 32
        assert "2 of 4 samples with pictures of" in report.calibration.source
        hashes.append(report.calibration.sha256)
        errors.append([linear.rtn_relative_mse for linear in report.blocks[0].linears])
    assert errors[0] == errors[2] and hashes[0] == hashes[2]
    assert hashes[0] != hashes[1]
    assert all(a != b for a, b in zip(errors[0], errors[1], strict=True))
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "b", "again")]
    assert weights[0] == weights[2] and weights[0] != weights[1]


def test_other_images_start_over(llava: Path, calibration_text: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(llava, tmp_path / "out", calibration_text, observer=stop)
    seen: list[str] = []
    quantize(
        llava,
        tmp_path / "out",
        calibration_text,
        images=picture_folder(tmp_path / "images", seed=0),
        observer=lambda _, __, what: seen.append(what),
    )
    assert seen[0] == "block 0"


def test_images_that_are_of_no_use_are_named(
    llava: Path, calibration_text: Path, tmp_path: Path
) -> None:
    def refused(message: str, model: Path = llava, **options: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            quantize(model, tmp_path / "out", calibration_text, **options)

    refused("--images .*/none is no directory", images=tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(r"the directory has no .png, .jpg, .jpeg, .webp files", images=empty)
    (empty / "a.png").write_bytes(b"no picture")
    refused("a.png: cannot be read as a picture", images=empty)
    Image.new("RGB", (8, 8)).save(empty / "a.png")
    os.mkfifo(empty / "a.txt")
    refused("--images .*a.txt is a pipe, not a plain file", images=empty)
    (empty / "a.txt").unlink()
    os.mkfifo(empty / "A.png")
    refused("--images .*A.png is a pipe, not a plain file", images=empty)
    (empty / "A.png").unlink()
    (empty / "a.txt").write_bytes(b"\xff\xfe")
    refused("a.txt is not UTF-8", images=empty)
    (empty / "a.txt").write_text("What?\n<image>")
    refused(r"has the model's image token \(id 5\) 2 times", images=empty)
    (empty / "a.txt").write_text("Is it long? " * 20 + "?")
    refused("has .* tokens, the model takes 128; use smaller pictures", images=empty)
    text_model = save_model(build_model("llama"), tmp_path / "llama")
    refused("model_type 'llama' takes no images", text_model, images=empty)
    (tmp_path / "broken").mkdir()
    path = shutil.copytree(llava, tmp_path / "broken" / "model")
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"cannot load the image processor .* copy preprocessor"):
        quantize(path, tmp_path / "out", calibration_text)


def test_an_image_that_the_tower_does_not_expect_is_one_line(
    llava: Path, calibration_text: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(llava, tmp_path / "model")
    processor = json.loads((path / "preprocessor_config.json").read_text())
    processor["crop_size"] = {"height": 35, "width": 35}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ModelError, match="cannot run the model on calibration images: ") as refused:
        quantize(path, tmp_path / "out", calibration_text)
    assert "\n" not in str(refused.value)
