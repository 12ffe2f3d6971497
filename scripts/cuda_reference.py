"""Make what the cuda backend is compared with: a bundle of the demo model for it, and what
onnxruntime computes from the same checkpoint in float32 at accuracy level 0.

    python scripts/cuda_reference.py OUT [--method rtn]

OUT/bundle: for runtime cuda. OUT/reference.npz: ids int64 [2, 1000], likeliest int64 [2, 1000] (the
token with the largest logit after each), losses float64 [2, 999] (natural logarithms). The text is
the end of the packaged one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import awq_edge
from awq_edge.artifacts.directories import atomic_directory
from awq_edge.runtime.tokenizer import Tokenizer

WINDOWS, TOKENS = 2, 1000  # the demo model has 1024 positions
TEXT = Path(awq_edge.__file__).parent / "data" / "calibration.txt"
CHARACTERS = 40_000  # more than enough for them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="rtn")
    arguments = parser.parse_args()
    with atomic_directory(arguments.out) as work:
        checkpoint = work / "checkpoint"
        awq_edge.quantize("demo", checkpoint, awq_edge.load_recipe(method=arguments.method))
        awq_edge.export(checkpoint, work / "bundle", awq_edge.load_recipe(runtime="cuda"))
        found = reference(
            awq_edge.export(checkpoint, work / "onnx", awq_edge.load_recipe(accuracy_level=0)).path
        )
        np.savez(work / "reference.npz", **found)
    print(f"{arguments.out}: perplexity {np.exp(found['losses'].mean()):.5f}")


def reference(bundle: Path) -> dict[str, np.ndarray]:
    """ids, likeliest and losses; see above."""
    text = TEXT.read_text(encoding="utf-8")[-CHARACTERS:]
    ids = np.array(Tokenizer(bundle).encode(text)[-WINDOWS * TOKENS :]).reshape(WINDOWS, TOKENS)
    likeliest, losses = [], []
    with awq_edge.load(bundle) as model:
        for window in ids:
            model.session.reset()
            logits = model.session.logits(window.tolist(), range(TOKENS)).astype(np.float64)
            likeliest.append(logits.argmax(axis=1))
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            losses.append(-log_shares[np.arange(TOKENS - 1), window[1:]])
    return {"ids": ids, "likeliest": np.array(likeliest), "losses": np.array(losses)}


if __name__ == "__main__":
    main()
