"""A tiny random Llama with a byte-level tokenizer, for tests that need a whole model directory."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, IM_START, IM_END = range(4)
MAX_POSITIONS = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT = (
    "Once upon a time there was a little girl named Lily. She went to the river to look for her "
    "boat, and there she met an old man who sold bread. 'Good morning,' said the old man.\n"
) * 6


def save_tokenizer(directory: Path, *, chat: bool = False, merges: bool = True) -> Path:
    """tokenizer.json and tokenizer_config.json: byte-level BPE with BOS before a text.

    merges: without them each byte is a token, so that texts break anywhere.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320 if merges else len(SPECIAL) + 256,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    if chat:
        config |= {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def save_tiny_llama(directory: Path, *, chat: bool = False, head_size: int = 16) -> Path:
    """A model directory of random float32 weights, large enough for texts to differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(directory, chat=chat)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_size,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=BOS,
        eos_token_id=IM_END if chat else EOS,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 2.0 * parameter.shape[1] ** -0.5)
    model.save_pretrained(directory)
    return directory
