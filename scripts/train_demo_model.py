"""Train the demo model: a small Llama on one text file, with its tokenizer and model card.

    python scripts/train_demo_model.py --corpus FILE --out DIR [--device cuda]

Needs the [host] extra. The weights are those of the best held-out loss. With --card-only the model
in DIR is measured again and its card rewritten; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = Path(__file__).with_name("demo_model_card.md")
DEMO = Path(__file__).resolve().parents[1] / "awq_edge" / "data" / "demo"
CHAT_TEMPLATE = DEMO / "chat_template.jinja"
PIECES = 128  # the corpus is cut into this many pieces of equal length
HELD_OUT_PIECES = 4  # of them nothing is trained on
BOS, EOS = "<s>", "</s>"
VOCAB_SIZE = 4096
CONTEXT = 1024  # tokens of a training sequence
BATCH = 16  # sequences of a step
EVALUATE_EVERY = 100  # steps
# Of the dropouts 0.1 to 0.4 and 1,100 to 8,000 steps, these gave the lowest held-out loss.
STEPS = 2400
PEAK_RATE = 2e-3
DROPOUT = 0.4
# Starts of the ten samples in the card; the first three are unlike anything in the corpus.
PROMPTS = (
    "The computer said",
    "Once upon a time",
    "A list of things to buy:",
    "My fellow citizens,",
    "The state of the Union is",
    "In the beginning",
    "KING HENRY:",
    "The economy of this country",
    "And the Lord said unto",
    "O, my good lord,",
)


@dataclass(frozen=True)
class Settings:
    """steps: optimizer steps. peak_rate: of AdamW, reached after warmup steps, then a cosine to a
    tenth. dropout: of every attention and MLP output."""

    steps: int
    peak_rate: float
    dropout: float
    seed: int
    warmup: int = 100
    weight_decay: float = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="UTF-8 text to train on")
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--peak-rate", type=float, default=PEAK_RATE)
    parser.add_argument("--dropout", type=float, default=DROPOUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--held-out", type=Path, help="also write the held-out text to this file")
    parser.add_argument("--card-only", action="store_true", help="measure the model in --out again")
    arguments = parser.parse_args()
    pieces, held_out = split(arguments.corpus.read_text(encoding="utf-8"))
    training = "".join(pieces)
    if arguments.held_out:
        arguments.held_out.write_text(held_out, encoding="utf-8")
    if not arguments.card_only:
        settings = Settings(arguments.steps, arguments.peak_rate, arguments.dropout, arguments.seed)
        arguments.out.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(training)
        save_tokenizer(tokenizer, arguments.out)
        facts = train(tokenizer, training, held_out, settings, arguments.device, arguments.out)
        facts["corpus"] = arguments.corpus.name
        (arguments.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    write_card(arguments.out, held_out)


def split(text: str) -> tuple[list[str], str]:
    """Pieces to train on, and the held-out text: whole lines, drawn with a fixed seed."""
    # The corpus has bytes that were lost before it came here; they teach nothing.
    lines = text.replace("\ufffd", "").splitlines(keepends=True)
    size = sum(map(len, lines)) / PIECES
    pieces = [""] * PIECES
    position = 0
    for line in lines:
        pieces[min(int(position / size), PIECES - 1)] += line
        position += len(line)
    chosen = set(random.Random(0).sample(range(PIECES), HELD_OUT_PIECES))
    training = [piece for index, piece in enumerate(pieces) if index not in chosen]
    return training, "".join(pieces[index] for index in sorted(chosen))


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE whose encoding begins with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS} $B",
                special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
            ),
        ]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if not (out / CHAT_TEMPLATE.name).exists():
        shutil.copy(CHAT_TEMPLATE, out)


def train(
    tokenizer: Tokenizer,
    training: str,
    held_out: str,
    settings: Settings,
    device: str,
    out: Path,
) -> dict[str, object]:
    """Train, keep the weights of the best held-out loss, save them as fp16; facts for the card."""
    torch.manual_seed(settings.seed)
    ids = torch.tensor(tokenizer.encode(training, add_special_tokens=False).ids, device=device)
    unseen = torch.tensor(tokenizer.encode(held_out, add_special_tokens=False).ids, device=device)
    bos = tokenizer.token_to_id(BOS)
    model = build_model(tokenizer, settings.dropout).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, settings))
    best, best_step, best_weights = math.inf, 0, {}
    started = time.perf_counter()
    for step in range(1, settings.steps + 1):
        model.train()
        starts = torch.randint(0, len(ids) - CONTEXT, (BATCH, 1), device=device)
        window = ids[starts + torch.arange(CONTEXT, device=device)]  # [BATCH, CONTEXT]
        # Every sequence begins with BOS, as at inference.
        window[:, 0] = bos
        loss = mean_loss(model, window, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % EVALUATE_EVERY == 0 or step == settings.steps:
            unseen_loss = evaluate(model, unseen, bos, device)
            print(
                f"step {step}/{settings.steps} loss {loss.item():.3f} held-out perplexity "
                f"{math.exp(unseen_loss):.2f} {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            if unseen_loss < best:
                best, best_step = unseen_loss, step
                best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_weights)
    model.half().save_pretrained(out)
    return {
        "parameters": parameters,
        "training_tokens": len(ids),
        "held_out_tokens": len(unseen),
        "steps": settings.steps,
        "best_step": best_step,
        "tokens_per_step": BATCH * CONTEXT,
        "peak_rate": settings.peak_rate,
        "dropout": settings.dropout,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def build_model(tokenizer: Tokenizer, dropout: float) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        dtype="float16",
    )
    model = LlamaForCausalLM(config).float()

    def drop(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, dropout, module.training)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)
    return model


def cosine(step: int, settings: Settings) -> float:
    """Factor on the peak rate: a linear warm-up, then a cosine down to a tenth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * share))


def mean_loss(model: LlamaForCausalLM, window: torch.Tensor, device: str) -> torch.Tensor:
    """Mean negative log-likelihood of window[:, 1:], in nats. window: int64 [B, S]."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, ids: torch.Tensor, bos: int, device: str) -> float:
    """Loss over consecutive windows; the card's perplexity is measured with more context."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, CONTEXT - 1):
        piece = torch.cat([ids.new_tensor([bos]), ids[start : start + CONTEXT - 1]])
        total += mean_loss(model, piece[None], device).item() * (len(piece) - 1)
        count += len(piece) - 1
    return total / count


def write_card(out: Path, held_out: str) -> None:
    """Measure the saved model as `awq-edge eval` does, draw the samples, write README.md."""
    from awq_edge.evaluate.report import evaluate_perplexity

    facts = json.loads((out / "training.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "held_out.txt"
        text.write_text(held_out, encoding="utf-8")
        report = evaluate_perplexity(out, text)
    samples = "\n\n".join(
        f"{number}. `{prompt}`\n\n{indent(sample(out, prompt, number))}"
        for number, prompt in enumerate(PROMPTS, start=1)
    )
    card = TEMPLATE.read_text(encoding="utf-8").format(
        perplexity=report.perplexity,
        bits_per_byte=report.bits_per_byte,
        window=report.window,
        stride=report.stride,
        epochs=facts["best_step"] * facts["tokens_per_step"] / facts["training_tokens"],
        megabytes=(out / "model.safetensors").stat().st_size / 1e6,
        samples=samples,
        **facts,
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def sample(out: Path, prompt: str, seed: int) -> str:
    """80 tokens at temperature 0.8, top-p 0.95, as drawn the first time."""
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    torch.manual_seed(seed)
    tokens = model.generate(
        ids, do_sample=True, temperature=0.8, top_p=0.95, top_k=0, max_new_tokens=80
    )
    return tokenizer.decode(tokens[0].tolist())


def indent(text: str) -> str:
    return "\n".join(f"       {line}".rstrip() for line in text.splitlines())


if __name__ == "__main__":
    main()
