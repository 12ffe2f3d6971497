"""llm-compressor's weights of a model, dequantized. Needs llmcompressor, torch, transformers.

Asymmetric groups, GPTQ or AWQ with its own defaults otherwise. Scales are in the model's dtype, as
its checkpoints hold them.
"""

import importlib.metadata
import time

import torch
from arguments import parser
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from dense_checkpoint import block_linears, calibration_ids, write_model, write_result
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM


def main() -> None:
    flags = parser(__doc__.split("\n\n")[0])
    flags.add_argument("--bits", type=int, required=True)
    flags.add_argument("--method", choices=("gptq", "awq"), required=True)
    arguments = flags.parse_args()
    ids = calibration_ids(arguments.calibration)
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    model = model.to(arguments.device)
    oneshot(
        model=model,
        dataset=torch.utils.data.DataLoader(samples, batch_size=1),
        recipe=recipe(arguments),
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
    )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, linear in block_linears(model).items():
        tensors[f"{name}.weight"] = fake_quantize(
            linear.weight.detach(),
            linear.weight_scale,
            linear.weight_zero_point,
            linear.quantization_scheme.weights,
        )
    write_model(arguments.model, arguments.out, tensors)
    write_result(
        arguments.out,
        bits_per_weight=arguments.bits + (16 + arguments.bits) / arguments.group_size,
        seconds=time.perf_counter() - started,
        device=arguments.device,
        versions={
            name: importlib.metadata.version(name)
            for name in ("llmcompressor", "compressed-tensors", "torch", "transformers")
        },
    )


def recipe(arguments) -> list:
    weights = QuantizationArgs(
        num_bits=arguments.bits,
        type="int",
        symmetric=False,
        strategy="group",
        group_size=arguments.group_size,
    )
    scheme = {"config_groups": {"linears": QuantizationScheme(targets=["Linear"], weights=weights)}}
    if arguments.method == "gptq":
        return [GPTQModifier(**scheme, ignore=["lm_head"])]
    return [AWQModifier(), QuantizationModifier(**scheme, ignore=["lm_head"])]


if __name__ == "__main__":
    main()
