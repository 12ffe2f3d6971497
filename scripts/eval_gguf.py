"""Perplexity of GGUF files in llama.cpp, and their divergence from a model in 16 bits, over the
windows that `awq-edge eval` scores.

    python scripts/eval_gguf.py MODEL FILE.gguf... --text test.txt --max-tokens 8192 --json FILE

MODEL has the tokenizer, and is the reference. Needs llama-cpp-python, which pip compiles. llama.cpp
rounds what quantized weights multiply to 8 bits, on a CPU: `--dequantized` scores the weights that
the file stands for in float32 instead, without that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.artifacts.gguf_header import read_gguf_header
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import describe_cpu
from awq_edge.evaluate.divergence import divergence
from awq_edge.evaluate.divergence_report import standard_error
from awq_edge.evaluate.logits_models import EvaluatedModel, Float32
from awq_edge.evaluate.text import read_text
from awq_edge.evaluate.torch_models import DenseModel
from awq_edge.runtime.tokenizer import Tokenizer

_ROWS = 256  # of logits at a time


class LlamaCppModel:
    """A GGUF file in llama.cpp, as a `LogitsModel`. tokenizer: of the Hugging Face model, whose ids
    the file has."""

    packages = ("llama-cpp-python",)

    def __init__(self, file: Path, tokenizer: Tokenizer, context: int, threads: int = 1) -> None:
        import llama_cpp

        self._model = llama_cpp.Llama(
            str(file),
            n_threads=threads,
            n_threads_batch=threads,
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            logits_all=True,
            verbose=False,
        )
        self.tokenizer = tokenizer
        self.context = context
        self.vocab_size = self._model.n_vocab()
        self.info = EvaluatedModel(
            kind="model", path=str(file), runtime="llama.cpp", device="cpu", dtype="float32"
        )

    def logits(self, ids: Sequence[int], first: int) -> Iterator[Float32]:
        """Logits after ids[first] and later ones, in blocks of float32 [rows, vocab]."""
        self._model.reset()
        self._model.eval(list(ids))
        for begin in range(first, len(ids), _ROWS):
            yield np.array(self._model.scores[begin : min(begin + _ROWS, len(ids))])

    def close(self) -> None:
        self._model.close()


def dequantized(file: Path, folder: Path) -> Path:
    """The same file with every weight in float32."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.quants import dequantize

    out = folder / f"{file.stem}-float32.gguf"
    reader = GGUFReader(file)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *items = field.types
            writer.add_key_value(name, field.contents(), kind, items[0] if items else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def measure(arguments: argparse.Namespace, file: Path, reference: DenseModel) -> dict[str, Any]:
    """One row: of a file."""
    header = read_gguf_header(file)
    text = read_text(arguments.text, "--text").tokenized(reference.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        scored = dequantized(file, Path(folder)) if arguments.dequantized else file
        target = LlamaCppModel(scored, reference.tokenizer, arguments.window, arguments.threads)
        result = divergence(
            target,
            reference,
            text.first(arguments.max_tokens),
            window=arguments.window,
            stride=arguments.window,
        )
        target.close()
    blocks = [tensor for tensor in header.tensors if tensor.name.startswith("blk.")]
    kinds = dict.fromkeys(tensor.type for tensor in blocks)
    return {
        "file": file.name,
        "types": {kind: sum(t.weights for t in blocks if t.type == kind) for kind in kinds},
        "bytes": header.size,
        "perplexity": result.perplexity,
        "reference_perplexity": result.reference_perplexity,
        "kl": float(result.kl.mean()),
        "kl_standard_error": standard_error(result.kl),
        "same_top1": float(result.same_top1.mean()),
        "tokens": len(result.kl),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path, help="the Hugging Face model, in 16 bits")
    parser.add_argument("files", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dequantized", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    reference = DenseModel(arguments.model, torch.device("cpu"), "float32")
    rows = []
    for file in arguments.files:
        rows.append(measure(arguments, file, reference))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "benchmark": "gguf",
        "model": arguments.model.name,
        "text": arguments.text.name,
        "window": arguments.window,
        "dequantized": arguments.dequantized,
        "rows": rows,
        "device": describe_cpu().name,
        "versions": versions(("llama-cpp-python", "gguf", "numpy", "torch", "transformers")),
        "commit": source_commit(),
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
