"""The weight of a linear's output error in the divergence of the whole model.

With e the error of a linear's output at a token and g the gradient of -log p(y) in that output, y
drawn from the model's own prediction p, the divergence of the model with such errors from the one
without is to second order

    KL = 1/2 mean over tokens of (g . e)^2  ~  1/2 sum over channels r of mean(g_r^2) mean(e_r^2)

(the Fisher information, errors of different tokens and channels as independent). One backward pass
gives g for every linear, block by block as the forward pass: memory is that of one block.

    ids ─► block 0 ... n-1 (hidden states kept) ─► final norm ─► logits ─► y
           block 0 ... n-1 ◄─────────────── gradients ◄──────── p - onehot(y)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_edge.model.archs import Decoder
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.torch_tensors import read_float32
from awq_edge.quantizer.blocks.runner import BlockOnDevice, BlockRunner
from awq_edge.quantizer.blocks.stream import CalibrationStream
from awq_edge.quantizer.blocks.task import BlockOptions, block_task
from awq_edge.quantizer.blocks.weights import read_finite, read_weights
from awq_edge.quantizer.calibration.text import CalibrationSet
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.run_options import Observer

_LOGITS_ROWS = 256  # tokens whose logits are there at a time

Batches = list[torch.Tensor]  # float32 [samples, length, hidden] each


def sensitivities(
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    options: BlockOptions,
    device: torch.device,
    observer: Observer | None = None,
) -> list[Mapping[str, torch.Tensor]]:
    """KL in nats a token for a squared error of 1 a token in each channel of each linear's output.

    calibration: tokens of the backward pass, all at once. Returns by layer and name relative to the
    block: float32 [out], 0 for an expert that no token reaches.
    """
    total = checkpoint.decoder.num_layers
    stream = CalibrationStream(checkpoint, calibration, options, device)
    before: list[Batches] = []
    tasks = [block_task(checkpoint, options, layer) for layer in range(total)]
    for task in tasks:
        before.append(stream.copied_batches())
        stream.advance(task.layer, read_weights(checkpoint, task, device))
    gradients = _behind_blocks(checkpoint, stream.runner, stream.copied_batches(), options, device)
    found: list[Mapping[str, torch.Tensor]] = []
    for task in reversed(tasks):
        if observer is not None:
            observer(total - 1 - task.layer, total, f"sensitivity of block {task.layer}")
        weights = read_weights(checkpoint, task, device)
        sums = {
            name: torch.zeros(len(weights[f"{name}.weight"]), device=device)
            for name in task.input_of
        }
        with stream.runner.block(task.layer, weights) as block:
            for batch, hidden in enumerate(before.pop()):
                start = hidden.to(device).requires_grad_()
                gradients[batch] = _pull_back(block, start, batch, gradients[batch], sums)
        found.append({name: each * (0.5 / calibration.ids.size) for name, each in sums.items()})
        del weights
        return_free_memory()
    return found[::-1]


def _pull_back(
    block: BlockOnDevice,
    hidden: torch.Tensor,
    batch: int,
    gradient: torch.Tensor,
    sums: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """The gradient before a block, from the one behind it. sums: of squared gradients in the output
    of each linear, [out], which this batch is added to. hidden: requires a gradient."""
    with block.outputs(list(sums)) as outputs:
        output = block.run(hidden, batch)
    before, *inside = torch.autograd.grad(output, [hidden, *outputs.values()], gradient)
    for name, each in zip(outputs, inside, strict=True):
        sums[name].add_(each.reshape(-1, each.shape[-1]).square().sum(0))
    return before


def _behind_blocks(
    checkpoint: Checkpoint,
    runner: BlockRunner,
    hidden: Batches,
    options: BlockOptions,
    device: torch.device,
) -> Batches:
    """The gradients of -log p(y) behind the last block, like its output."""
    decoder = checkpoint.decoder
    arch = decoder.architecture
    names = [name for name in decoder.weight_shapes() if name.startswith(f"{arch.final_norm}.")]
    norm = {name: read_finite(checkpoint, name, device) for name in names}
    source = arch.embedding if decoder.tied_embeddings else arch.lm_head
    head = read_float32(checkpoint.files, f"{source}.weight", device)
    random = torch.Generator(device).manual_seed(options.seed)
    gradients: Batches = []
    with runner.output_input(norm) as run:
        for batch in hidden:
            start = batch.to(device).requires_grad_()
            inputs = run(start)
            rows = inputs.detach().reshape(-1, inputs.shape[-1])
            parts = [
                _in_head_input(decoder, head, part, random)
                for part in torch.split(rows, _LOGITS_ROWS)
            ]
            gradient = torch.cat(parts).view_as(inputs)
            gradients += torch.autograd.grad(inputs, start, gradient)
    return gradients


def _in_head_input(
    decoder: Decoder, head: torch.Tensor, inputs: torch.Tensor, random: torch.Generator
) -> torch.Tensor:
    """The gradient of -log p(y) in the output layer's input, y drawn from p: float32, like it.

    head: float32 [vocab, in]. inputs: float32 [tokens, in].
    """
    logits = (inputs @ head.T).div_(decoder.logits_divisor)
    slope = None
    if decoder.logits_softcap is not None:
        capped = torch.tanh(logits / decoder.logits_softcap)
        slope, logits = 1 - capped.square(), capped * decoder.logits_softcap
    gradient = torch.softmax(logits, dim=1)
    drawn = torch.multinomial(gradient, 1, generator=random)
    gradient.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=gradient.dtype))
    if slope is not None:
        gradient *= slope
    return (gradient @ head).div_(decoder.logits_divisor)
