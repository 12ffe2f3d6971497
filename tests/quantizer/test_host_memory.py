"""Peak memory of AWQ on a CPU: two blocks in float32, hidden states, statistics of a block.

The peak is that of a process of its own, after it has quantized a model of no size, whose memory is
the libraries'.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.sizes import block_parameters, statistics_bytes
from awq_edge.recipe.recipes import load_recipe
from tests.tiny_models import save_tokenizer

SAMPLES, LENGTH = 4, 256
# What the matrix libraries take for their own buffers when products grow, and the pieces of rows,
# which are no smaller for a small model. Measured: 21 MB on one processor, 62 on another; 119 MB
# when a second block, whole temporaries of the largest linear and freed memory were still there.
SLACK = 80 << 20

SCRIPT = """
import sys, awq_edge
from awq_edge.runtime.memory import read_process_memory
peaks = []
tiny, model, out, samples, length = sys.argv[1:]
for path, group, samples, length in ((tiny, 32, 2, 32), (model, 128, int(samples), int(length))):
    recipe = awq_edge.load_recipe(
        "cpu", method="awq", group_size=group, samples=samples, length=length
    )
    awq_edge.quantize(path, f"{out}/{len(peaks)}", recipe)
    peaks.append(read_process_memory().peak_rss)
print(*peaks)
"""


def save_larger_llama(directory: Path) -> Path:
    """A block of 9 M parameters, float16, and a small vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(directory)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(directory)
    return directory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_two_blocks_hidden_states_and_statistics_are_enough(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = save_larger_llama(tmp_path / "model")
    command = [sys.executable, "-c", SCRIPT, str(tiny_llama), str(model), str(tmp_path)]
    result = subprocess.run(
        [*command, str(SAMPLES), str(LENGTH)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    libraries, peak = map(int, result.stdout.split())
    decoder = Checkpoint.open(model).decoder
    budget = load_recipe("cpu").quantization.statistics_budget_bytes
    allowed = (
        2 * 4 * block_parameters(decoder, 0)
        + 4 * SAMPLES * LENGTH * decoder.hidden_size
        + statistics_bytes(decoder, 0, budget)
    )
    assert peak - libraries < allowed + SLACK, f"{peak - libraries} bytes, {allowed} allowed"
