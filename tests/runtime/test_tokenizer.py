"""The tokenizer against transformers', and the streaming decoder against decoding at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from awq_edge.errors import ModelError
from awq_edge.runtime.tokenizer import Tokenizer, stop_token_ids

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
CORPUS = [
    "once upon a time there was a little girl named lily. she said 'hello' — héllo 你好 🙂"
] * 4


def byte_level(folder: Path) -> Path:
    """A byte-level BPE tokenizer as GPT-2, Llama 3 and Qwen have, without a rule for BOS."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def sentencepiece_like(folder: Path) -> Path:
    """A BPE tokenizer with byte fallback and a space before the text, as Llama 1 and 2 have."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    letters = sorted({c for text in CORPUS for c in text if ord(c) < 0x80 and c != " "})
    vocabulary = {t: i for i, t in enumerate(["<unk>", *SPECIAL, *bytes_, "▁", *letters])}
    vocabulary |= {t: len(vocabulary) + i for i, t in enumerate(["▁o", "▁t", "he", "▁the", "er"])}
    merges = [("▁", "o"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("e", "r")]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_like])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return Tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


def streamed(tokenizer: Tokenizer, ids: list[int], before: list[int]) -> list[str]:
    stream = tokenizer.stream(before)
    return [*(stream.push(i) for i in ids), stream.flush()]


@settings(max_examples=300, deadline=None)
@given(prompt=st.text(max_size=20), answer=st.text(max_size=40))
def test_stream_joins_to_the_decoded_text(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(answer, add_special_tokens=False)
    text = tokenizer.decode(before) + "".join(streamed(tokenizer, after, before))
    assert text == tokenizer.decode(before + after)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stream_of_any_ids_loses_no_character(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    text = "".join(streamed(tokenizer, ids, []))
    # Decoded at once, one invalid byte makes its whole run of bytes invalid; the stream has shown
    # the characters before it already.
    characters = iter(text)
    assert all(c in characters for c in tokenizer.decode(ids) if c != "\ufffd")


@pytest.mark.parametrize("text", ["a 🙂 b", "你好", "héllo — “x”"])
def test_no_piece_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tokenizer, ids, [])
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text


def test_words_come_as_they_are_generated(tokenizer: Tokenizer) -> None:
    """Nothing is held back but an incomplete character: a slow model would look stuck."""
    ids = tokenizer.encode("the other hero", add_special_tokens=False)
    stream = tokenizer.stream()
    for count, token in enumerate(ids, start=1):
        before = tokenizer.decode(ids[: count - 1])
        assert stream.push(token) == tokenizer.decode(ids[:count])[len(before) :]


def test_space_before_the_continuation_is_kept(tmp_path: Path) -> None:
    """A decoder that strips the first space of a text must not strip the continuation's."""
    tokenizer = Tokenizer(sentencepiece_like(tmp_path))
    prompt = tokenizer.encode("the", add_special_tokens=False)
    following = [tokenizer.token_id("▁the")]
    assert tokenizer.decode(following) == "the"  # what decoding apart would show
    assert "".join(streamed(tokenizer, following, prompt)) == " the"


def test_invalid_bytes_come_out_at_the_end(tmp_path: Path) -> None:
    tokenizer = Tokenizer(sentencepiece_like(tmp_path))
    broken = [tokenizer.token_id("<0xE2>"), tokenizer.token_id("<0x82>")]
    pieces = streamed(tokenizer, broken, [])
    assert pieces[:2] == ["", ""]
    assert pieces[2] == "\ufffd\ufffd"


@pytest.mark.parametrize("text", ["Once upon a time", " two  spaces", "", "line\nbreak", "é🙂"])
def test_stories_tokenizer_agrees_with_transformers(stories: Path, text: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the [host] extra")
    reference = transformers.AutoTokenizer.from_pretrained(stories)
    tokenizer = Tokenizer(stories)
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(
        text, add_special_tokens=False
    )


def test_add_bos_token_puts_one_bos_before_the_text(tmp_path: Path) -> None:
    byte_level(tmp_path)
    plain = Tokenizer(tmp_path).encode("hello")
    config = {"add_bos_token": True, "bos_token": {"content": "<s>", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("hello") == [0, *plain]
    assert tokenizer.encode("<s>hello") == [0, *plain]
    assert tokenizer.encode("hello", add_special_tokens=False) == plain


def test_stop_tokens_of_all_three_sources(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert stop_token_ids(Tokenizer(tmp_path), (1,)) == {1, 2, 7, 8}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stop_token_ids(Tokenizer(tmp_path), ()) == {2, 7}


def test_missing_and_damaged_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=r"not a valid tokenizer\.json"):
        Tokenizer(tmp_path)


def with_chatml(folder: Path, *, file: str) -> tuple[Path, int]:
    """A tokenizer whose ChatML tokens stand in another file; the first id behind tokenizer.json."""
    byte_level(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    first = backend.get_vocab_size()
    ids = {f"<|{name}_x|>": first + i for i, name in enumerate(("im_end", "im_start"))}
    config: dict[str, object] = {"eos_token": "<|im_end_x|>", "bos_token": "<s>"}
    if file == "added_tokens.json":
        (folder / file).write_text(json.dumps(ids))
    else:
        config["added_tokens_decoder"] = {
            str(number): {"content": text, "special": True, "normalized": False}
            for text, number in ids.items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder, first


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_another_file_names_are_whole(tmp_path: Path, file: str) -> None:
    folder, first = with_chatml(tmp_path, file=file)
    tokenizer = Tokenizer(folder)
    text = "<|im_start_x|>hello<|im_end_x|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids[0] == first + 1 and ids[-1] == first
    assert tokenizer.eos_token_id == first and stop_token_ids(tokenizer, ()) == {first}
    transformers = pytest.importorskip("transformers", reason="needs the [host] extra")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert reference.encode(text, add_special_tokens=False) == ids
    assert reference.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_an_id_that_cannot_be_given_is_refused(tmp_path: Path) -> None:
    folder, first = with_chatml(tmp_path, file="added_tokens.json")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end_x|>": first + 7}))
    with pytest.raises(ModelError, match=rf"'<\|im_end_x\|>' has the id {first + 7}.*{first}"):
        Tokenizer(folder)


def test_an_end_that_no_file_adds_gets_the_next_id(tmp_path: Path) -> None:
    byte_level(tmp_path)
    size = Tokenizer(tmp_path).vocab_size
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end_x|>"}))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_token_id == size and tokenizer.encode("a<|end_x|>")[-1] == size


def test_a_bos_that_the_text_has_is_not_doubled(tmp_path: Path) -> None:
    byte_level(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    tokenizer = Tokenizer(tmp_path)
    plain = tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("hello") == tokenizer.encode("<s>hello") == [0, *plain]
    assert tokenizer.encode("<s><s>hello") == [0, 0, 0, *plain]  # which was asked for
    assert tokenizer.encode("<s>hello", add_special_tokens=False) == [0, *plain]


@pytest.mark.parametrize(
    ("behind", "token"),
    [("<|im_end|>\n", 2), ("</s><s>", 1), ("\n<|im_end|>", None), ("words", None), ("", None)],
)
def test_the_token_that_a_text_begins_with(tmp_path: Path, behind: str, token: int | None) -> None:
    byte_level(tmp_path)
    assert Tokenizer(tmp_path).leading_added_token(behind) == token
