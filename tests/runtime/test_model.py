"""A loaded bundle as a Python object, and what `load` refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import awq_edge
from awq_edge.errors import ArtifactError, ConfigError, ResourceError
from awq_edge.runtime.model import ChatOptions, load


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[awq_edge.Model]:
    with awq_edge.load(tiny_bundle, threads=1) as opened:
        yield opened


def test_greedy_is_transformers_greedy(model: awq_edge.Model, tiny_llama: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    result = model.generate("Once upon a time", max_new_tokens=40, ignore_eos=True)
    with torch.inference_mode():
        ids = reference.generate(
            torch.tensor([result.prompt_ids]), max_new_tokens=40, do_sample=False, eos_token_id=None
        )
    assert result.ids == tuple(ids[0, len(result.prompt_ids) :].tolist())


def test_stream_joins_to_generate(model: awq_edge.Model) -> None:
    settings = {"max_new_tokens": 30, "temperature": 1.0, "seed": 3}
    stream = model.stream("Once", **settings)  # type: ignore[arg-type]
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.result.text
    again = model.generate("Once", **settings)  # type: ignore[arg-type]
    assert again.ids == stream.result.ids
    assert stream.result.timings.ttft is not None


def test_a_prompt_as_long_as_the_context_gives_one_token(model: awq_edge.Model) -> None:
    prompt = "Q" * (model.session.context - 1)  # and BOS
    assert len(model.prompt_ids(prompt)) == model.session.context
    result = model.generate(prompt, ignore_eos=True)
    assert (len(result.ids), result.finish_reason) == (1, "context")
    with pytest.raises(ResourceError, match=r"the prompt has 257 tokens, the context holds 256"):
        model.prompt_ids(prompt + "Q")


def test_more_new_tokens_than_fit(model: awq_edge.Model) -> None:
    with pytest.raises(ResourceError, match=r"at most \d+ new tokens fit: lower --max-new-tokens"):
        model.generate("Once", max_new_tokens=1000)


def test_text_that_is_no_unicode_is_one_clear_line(model: awq_edge.Model) -> None:
    with pytest.raises(ConfigError, match="not UTF-8 at character 4"):
        model.generate("Once\udcff")


def test_messages_need_a_template(model: awq_edge.Model) -> None:
    with pytest.raises(ConfigError, match=r"no chat template.*--raw"):
        model.generate([{"role": "user", "content": "Hi"}])


def test_smaller_context_refuses_with_the_way_out(tiny_bundle: Path) -> None:
    with awq_edge.load(tiny_bundle, context=8) as model:
        assert model.session.context == 8
        with pytest.raises(ResourceError, match=r"give a larger --context \(up to 256\)"):
            model.generate("Once upon a time there was a little girl named Lily.")
    with pytest.raises(ConfigError, match="export it again with --context 300"):
        awq_edge.load(tiny_bundle, context=300)


def test_a_model_is_not_a_bundle(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is a model, not a bundle.*awq-edge export"):
        awq_edge.load(tiny_llama)
    with pytest.raises(ArtifactError, match="demo is a model"):
        awq_edge.load("demo")
    with pytest.raises(ArtifactError, match="does not exist"):
        awq_edge.load(tmp_path / "nothing")


def test_damaged_bundles_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    weights = copy / "model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was changed"):
        awq_edge.load(copy)
    weights.write_bytes(content[:-10])
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data has \d+ bytes"):
        awq_edge.load(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not valid JSON"):
        awq_edge.load(copy)


def test_a_graph_that_is_not_the_manifests(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["inputs"][0]["name"] = "tokens"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ArtifactError, match="inputs differ from the manifest's in input_ids, tokens"
    ):
        awq_edge.load(copy)


def test_stories_text_is_transformers_text(stories: Path, tmp_path: Path) -> None:
    """A trained model with a SentencePiece tokenizer: text and pieces of a long greedy answer."""
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = awq_edge.load_recipe(method="none", accuracy_level=0, activation_dtype="float32")
    bundle = awq_edge.export(stories, tmp_path / "bundle", recipe)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    reference = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    with torch.inference_mode():
        ids = reference.generate(**prompt, max_new_tokens=200, do_sample=False)[0].tolist()
    with awq_edge.load(bundle.path, threads=1) as model:
        stream = model.stream("Once upon a time", max_new_tokens=200)
        pieces = list(stream)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert "Once upon a time" + "".join(pieces) == text
    assert len(pieces) > 100
    assert pieces[0].startswith(",") and " " in pieces[1]


def test_an_answer_ends_where_the_template_ends_it(tiny_chat_bundle: Path, tmp_path: Path) -> None:
    """Also where no list names that token; a broken template ends nothing."""
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}{{ m.content }}<|im_start|>{% endfor %}"
    )
    with load(tiny_chat_bundle, threads=1) as usual:
        named, begin = usual.stop_token_ids, usual.tokenizer.token_id("<|im_start|>")
    assert begin is not None and begin not in named
    with load(tiny_chat_bundle, threads=1, chat_template=template) as model:
        assert model.stop_token_ids == named | {begin}
    template.write_text("{% if %}")
    with load(tiny_chat_bundle, threads=1, chat_template=template) as model:
        assert model.stop_token_ids <= named
        assert model.generate("Hi", max_new_tokens=2).ids


def test_stop_ids_and_stop_texts_of_a_call(tiny_chat_bundle: Path) -> None:
    with load(tiny_chat_bundle, threads=1) as model:
        whole = model.generate("Hi", max_new_tokens=5, ignore_eos=True)
        ended = model.generate("Hi", max_new_tokens=5, stop_token_ids=[whole.ids[0]])
        assert ended.ids == () and ended.finish_reason == "stop"


def test_messages_end_with_an_answer_that_is_continued(tiny_chat_bundle: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am"}]
    with load(tiny_chat_bundle, threads=1) as model:
        assert model.chat_prompt(talk).text.endswith("I am")
        begun = model.chat_prompt(talk, ChatOptions(add_generation_prompt=True)).text
        assert begun.endswith("I am<|im_end|>\n<|im_start|>assistant\n")
        ended = model.chat_prompt(talk, ChatOptions(continue_final_message=False)).text
        assert ended == begun
        with pytest.raises(ConfigError, match="exclude"):
            model.chat_prompt(talk, ChatOptions(None, True, True))


def test_an_end_that_is_no_token_is_a_stop_text(tiny_chat_bundle: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|over|>{% endfor %}")
    with load(tiny_chat_bundle, threads=1, chat_template=template) as model:
        assert model.turn_end_texts == ("<|over|>",)
    with load(tiny_chat_bundle, threads=1) as model:
        assert model.turn_end_texts == ()  # a token ends it
