"""Sound inputs of every kind, tiny, to be damaged."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_artifacts(folder: Path) -> None:
    """Make all of them below `folder`, in a process of its own: what it loads (torch) has threads,
    and the caller is to be forked."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "tests.attacks.artifacts", folder], cwd=ROOT, check=True)


def _make(folder: Path) -> None:
    import awq_edge
    from awq_edge.artifacts.directories import Bundle
    from awq_edge.recipe.files import recipe_folder
    from awq_edge.runtime.saved_conversation import SavedConversation, SavedMessage, save
    from tests.exporter.models import save_quantized, save_random_model
    from tests.tensorrt.engine_bundles import make_engine
    from tests.tiny_models import CHAT_TEMPLATE, save_tokenizer

    model = save_random_model(folder / "model", "llama", vocab_size=320)
    save_tokenizer(model, chat=True)
    (model / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "<|im_end|>", "lstrip": False}})
    )
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    moe = save_random_model(folder / "experts", "qwen3_moe", vocab_size=320)
    save_tokenizer(moe)
    _shard(model, folder / "sharded")
    for name, layout in (("awq", "awq"), ("ct", "compressed-tensors")):
        save_quantized(model, folder / name, layout=layout)
        for file in (*model.glob("*token*.json"), model / "generation_config.json"):
            shutil.copyfile(file, folder / name / file.name)
    awq_edge.quantize(
        model, folder / "reported", awq_edge.load_recipe("cpu", method="rtn", group_size=32)
    )
    for name, recipe in (("bundle", "cpu"), ("cuda", "cuda")):
        awq_edge.export(
            folder / "reported", folder / name, awq_edge.load_recipe(recipe, context=64)
        )
    tensorrt = awq_edge.export(
        folder / "reported", folder / "trt", awq_edge.load_recipe("rtx-4070-laptop-8gb", context=64)
    )
    make_engine(
        Bundle.open(tensorrt.path), tensorrt.path / "engines", "tensorrt-rtx", "1.7.1.116", "SM89"
    )
    (folder / "recipe").mkdir()
    shutil.copyfile(recipe_folder() / "cpu.toml", folder / "recipe" / "mine.toml")
    for file in recipe_folder().glob("_*.toml"):
        shutil.copyfile(file, folder / "recipe" / file.name)
    (folder / "conversation").mkdir()
    messages = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "x"),
                ("assistant", "y")]  # fmt: skip
    save(
        folder / "conversation" / "chat.json",
        SavedConversation(
            model_name="tiny",
            messages=tuple(SavedMessage(role=r, content=c) for r, c in messages),  # type: ignore[arg-type]
        ),
    )
    (folder / "gguf").mkdir()
    (folder / "gguf" / "model.gguf").write_bytes(tiny_gguf())
    (folder / "bench").mkdir()
    shutil.copyfile(ROOT / "docs/results/bench_demo.json", folder / "bench" / "a.json")


def tiny_gguf() -> bytes:
    """A GGUF file of one tensor, float32 [2, 8]: keys of several types, and an array of texts."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def key(name: str, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    tokens = b"".join(map(text, ("a", "b", "c")))
    keys = [
        key("general.architecture", 8, text("llama")),
        key("general.name", 8, text("tiny")),
        key("llama.block_count", 4, struct.pack("<I", 1)),
        key("llama.embedding_length", 4, struct.pack("<I", 8)),
        key("llama.feed_forward_length", 4, struct.pack("<I", 16)),
        key("llama.attention.head_count", 4, struct.pack("<I", 2)),
        key("llama.context_length", 4, struct.pack("<I", 32)),
        key("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        key("tokenizer.ggml.add_bos_token", 7, b"\x01"),
        key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + tokens),
        key("tokenizer.ggml.token_type", 9, struct.pack("<IQ3i", 5, 3, 1, 1, 1)),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 2, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    return header + bytes(-len(header) % 32) + bytes(range(64))


def _shard(model: Path, out: Path) -> None:
    """The same model in three files and an index."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        part = dict(list(sorted(tensors.items()))[number::3])
        save_file(part, out / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
