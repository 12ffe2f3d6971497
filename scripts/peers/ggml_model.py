"""A model's weights in one of llama.cpp's formats, dequantized. Needs libggml-python, gguf, torch.

Every linear of the blocks in the same format ("pure", no row of mixes such as Q4_K_M), rounded by
ggml itself with its importance matrix: the mean square of each input channel over the calibration
tokens, as llama-imatrix computes it. Formats of blocks of 256 weights do not fit rows of 576 or 640
columns: there a few output rows are taken as one, which costs llama.cpp nothing (it would choose a
larger format).
"""

import ctypes
import importlib.metadata
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import torch
from arguments import parser
from dense_checkpoint import block_linears, calibration_ids, write_model, write_result
from transformers import AutoModelForCausalLM


def main() -> None:
    flags = parser(__doc__.split("\n\n")[0])
    flags.add_argument("--type", required=True, help="Q4_K, IQ3_S, ...")
    arguments = flags.parse_args()
    kind = gguf.GGMLQuantizationType[arguments.type]
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    model = model.to(arguments.device).eval()
    linears = block_linears(model)
    importance = mean_squares(model, linears, calibration_ids(arguments.calibration))
    ggml = load_ggml()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(
            zip(
                linears,
                pool.map(
                    lambda name: rounded(
                        ggml, kind, linears[name].weight.detach().cpu().numpy(), importance[name]
                    ),
                    linears,
                ),
                strict=True,
            )
        )
    weights = {f"{name}.weight": torch.from_numpy(each) for name, (each, _) in results.items()}
    write_model(arguments.model, arguments.out, weights)
    stored = sum(nbytes for _, nbytes in results.values())
    write_result(
        arguments.out,
        bits_per_weight=8 * stored / sum(weight.numel() for weight in weights.values()),
        seconds=time.perf_counter() - started,
        device="cpu",
        versions={
            name: importlib.metadata.version(name)
            for name in ("libggml-python", "gguf", "torch", "transformers")
        },
    )


@torch.inference_mode()
def mean_squares(model, linears, ids) -> dict[str, np.ndarray]:
    """Mean of x² of each linear's input channels over the calibration tokens: float32 [in]."""
    sums = {name: 0.0 for name in linears}

    def add(name, values):
        sums[name] = sums[name] + values.double().square().flatten(end_dim=-2).sum(dim=0)

    for name, linear in linears.items():
        linear.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
    for row in ids:
        model(input_ids=row[None].to(model.device), use_cache=False, logits_to_keep=1)
    return {name: (total / ids.numel()).float().cpu().numpy() for name, total in sums.items()}


def load_ggml() -> ctypes.CDLL:
    """ggml's library with the signatures in use (ggml.h)."""
    root = Path(importlib.metadata.distribution("libggml-python").locate_file("libggml"))
    ggml = ctypes.CDLL(str(root / "lib64" / "libggml-base.so"))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_init.argtypes = [ctypes.c_int]
    return ggml


def rounded(ggml, kind, weight: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, int]:
    """A weight after ggml's rounding, float32 [out, in], and the bytes of its codes."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    together = block // math.gcd(block, weight.shape[1])  # output rows taken as one
    rows = np.ascontiguousarray(weight, np.float32).reshape(-1, together * weight.shape[1])
    importance = np.tile(np.ascontiguousarray(importance, np.float32), together)
    codes = np.empty((len(rows), rows.shape[1] // block * block_bytes), np.uint8)
    ggml.ggml_quantize_init(int(kind))
    written = ggml.ggml_quantize_chunk(
        int(kind),
        rows.ctypes.data,
        codes.ctypes.data,
        0,
        len(rows),
        rows.shape[1],
        importance.ctypes.data,
    )
    assert written == codes.nbytes, "ggml wrote another number of bytes than its format has"
    values = gguf.quants.dequantize(codes, kind)
    return np.ascontiguousarray(values, np.float32).reshape(weight.shape), codes.nbytes


if __name__ == "__main__":
    main()
