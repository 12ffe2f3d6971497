"""Quantization reports made up for tests: any number of blocks and experts, seeded figures."""

from __future__ import annotations

import random

from awq_edge.quantizer.report.schema import (
    BlockReport,
    CalibrationReport,
    LinearReport,
    Method,
    PerplexityComparison,
    QuantizationReport,
    sqnr_db,
    summarise,
)

ATTENTION = (
    ("self_attn.q_proj", "attention_in"),
    ("self_attn.k_proj", "attention_in"),
    ("self_attn.v_proj", "attention_in"),
    ("self_attn.o_proj", "attention_out"),
)
MLP = (("mlp.gate_proj", "mlp_in"), ("mlp.up_proj", "mlp_in"), ("mlp.down_proj", "mlp_out"))
PERPLEXITY = PerplexityComparison(
    text="wiki.txt",
    text_sha256="0" * 64,
    tokens=123456,
    window=1024,
    stride=512,
    dtype="float32",
    original=5.4721,
    quantized=5.6013,
)


def made_up_report(
    layers: int, *, experts: int = 0, method: Method = "awq", name: str = "some/model"
) -> QuantizationReport:
    """A report whose figures are drawn, each linear's own."""
    draw = random.Random(0)
    names = [*ATTENTION, *MLP]
    if experts:
        names = list(ATTENTION)
        for expert in range(experts):
            prefix = f"mlp.experts.{expert}"
            names += [(f"{prefix}.gate_proj", "mlp_in"), (f"{prefix}.up_proj", "mlp_in")]
            names.append((f"{prefix}.down_proj", f"experts.{expert}.mlp_out"))
    blocks = tuple(_block(draw, layer, names, method) for layer in range(layers))
    return QuantizationReport(
        model_name=name,
        model_type="llama",
        method=method,
        bits=4,
        group_size=128,
        scheme="asymmetric",
        errors_of="weights" if method == "rtn" else "outputs",
        calibration=None
        if method == "rtn"
        else CalibrationReport(source="packaged", samples=128, length=512, seed=0, sha256="a" * 64),
        summary=summarise(blocks),
        unquantized={},
        seconds=sum(block.seconds for block in blocks),
        peak_host_bytes=1_234_567_890,
        peak_cuda_bytes=None,
        device="a processor",
        threads=2,
        versions={"torch": "2.13.0"},
        commit="abcdef123456",
        time="2026-01-02T03:04:05+00:00",
        inputs_sha256="b" * 64,
        blocks=blocks,
    )


def _block(
    draw: random.Random, layer: int, names: list[tuple[str, str]], method: Method
) -> BlockReport:
    choices: dict[str, LinearReport] = {}
    linears = []
    for name, group in names:
        rtn = 10 ** -draw.uniform(1.8, 3.0)
        own = rtn if method == "rtn" else rtn * 10 ** -draw.uniform(-0.05, 0.3)
        choice = choices.get(group) or _choice(draw, name, group, method)
        choices[group] = choice
        nf4 = 10 ** -draw.uniform(1.8, 3.0)
        errors = {
            "name": name,
            "relative_mse": own,
            "sqnr_db": sqnr_db(own),
            "rtn_relative_mse": rtn,
            "rtn_sqnr_db": sqnr_db(rtn),
            "nf4_relative_mse": nf4,
            "nf4_sqnr_db": sqnr_db(nf4),
        }
        linears.append(choice.model_copy(update=errors))
    return BlockReport(
        layer=layer,
        seconds=draw.uniform(10, 20),
        fold_change=None if method == "rtn" else 1e-7,
        sampled_inputs=(),
        linears=tuple(linears),
    )


def _choice(draw: random.Random, name: str, group: str, method: Method) -> LinearReport:
    if "awq" not in method:
        return LinearReport(name=name, quantized=True, gptq=method == "gptq")
    kind = draw.choice(("plain", "weight-aware", "one", "fell back"))
    return LinearReport(
        name=name,
        quantized=True,
        group=group,
        exponent=draw.randrange(1, 21) / 20 if kind in ("plain", "weight-aware") else None,
        weight_aware=kind == "weight-aware",
        fell_back=kind == "fell back",
        clip_share=draw.random(),
        gptq=method == "awq+gptq",
    )
