"""AutoRound's weights of a model, dequantized. Needs auto-round, torch, transformers.

Asymmetric, its own defaults otherwise: learning rate, batch of 8, bfloat16 for the blocks' weights
while it learns. What it leaves in the model are weights rounded to bfloat16 once more; here they
are made of the codes again, as its exported checkpoints hold them.
"""

import importlib.metadata
import time

import torch
from arguments import parser
from auto_round import AutoRound
from dense_checkpoint import block_linears, calibration_ids, write_model, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    flags = parser(__doc__.split("\n\n")[0])
    flags.add_argument("--bits", type=int, required=True)
    arguments = flags.parse_args()
    ids = calibration_ids(arguments.calibration)
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    run = AutoRound(
        model,
        AutoTokenizer.from_pretrained(arguments.model),
        bits=arguments.bits,
        group_size=arguments.group_size,
        sym=False,
        iters=arguments.steps,
        dataset=torch.utils.data.DataLoader(samples, batch_size=8),
        nsamples=ids.shape[0],
        seqlen=ids.shape[1],
        device_map=arguments.device,
    )
    quantized, _ = run.quantize()
    linears = block_linears(quantized)
    weights = {f"{name}.weight": dequantized(each, arguments) for name, each in linears.items()}
    write_model(arguments.model, arguments.out, weights)
    write_result(
        arguments.out,
        bits_per_weight=arguments.bits + (16 + arguments.bits) / arguments.group_size,
        seconds=time.perf_counter() - started,
        device=arguments.device,
        versions={
            name: importlib.metadata.version(name)
            for name in ("auto-round", "torch", "transformers")
        },
    )


def dequantized(linear, arguments) -> torch.Tensor:
    """(code - zero) * scale of a linear that AutoRound has tuned: float32 [out, in].

    Its weight is that, rounded to the model's dtype: codes are told by rounding, and half a step is
    a hundred times that dtype's rounding error.
    """
    size, largest = arguments.group_size, 2**arguments.bits - 1
    weight = linear.weight.detach().float().cpu()
    grouped = weight.reshape(weight.shape[0], -1, size)
    scale = linear.scale.detach().float().cpu().reshape(weight.shape[0], -1, 1)
    zero = linear.zp.detach().float().cpu().reshape(weight.shape[0], -1, 1)
    codes = grouped / scale + zero
    off = (codes - codes.round()).abs().max().item()
    if off > 0.25 or codes.round().min() < 0 or codes.round().max() > largest:
        raise SystemExit(f"a weight is {off:.3f} steps off its code: another format than expected")
    return ((codes.round() - zero) * scale).reshape(weight.shape)


if __name__ == "__main__":
    main()
