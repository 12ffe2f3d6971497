"""The decoder of a program over our kernels: buffers, one pass over some tokens, logits.

    ids ─ embedding ─ residual ─┬─ norm ─ qkv ─ cached_attention ─ attention_out ─┐
                                │  (residual += branch) norm ─ gate_up ─ mlp_out ─ branch
                                └─ ... every layer ─ rows that are wanted ─ norm ─ lm_head

Nothing is allocated after the constructor, so a pass over one token can be captured into a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from awq_edge.kernels.interface import (
    COUNTER_BYTES,
    Activation,
    AttentionParameters,
    NormKind,
    NormParameters,
    Sampler,
)
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.linears import KERNEL_DTYPES, Kernels, ReadyLinear, ready_linear
from awq_edge.runtime.backends.cuda.program import CudaProgram, Layer, Linear
from awq_edge.runtime.backends.cuda.weights import DTYPES
from awq_edge.runtime.memory import LOGITS_ROWS


class CudaModel:
    """A program with its weights, one KV cache and buffers for passes of up to `max_rows` tokens.

    Every method queues work and returns; call them within the device's scope.

    past_length: int64 [1], on the device; a pass reads it when it runs. token: int64 [1], the input
    of `step`. ids: int64 [max_rows], the input of `run`.
    """

    def __init__(
        self,
        program: CudaProgram,
        tensors: Mapping[str, torch.Tensor],
        kernels: Kernels,
        device: Device,
        *,
        context: int,
        max_rows: int,
    ) -> None:
        """context: positions of the KV cache."""
        self._program = program
        self._tensors = tensors
        self._kernels = kernels
        self._device = device
        self._dtype = DTYPES[program.activation_dtype]
        self._kernel_dtype = KERNEL_DTYPES[self._dtype]
        shape = (len(program.layers), 2, program.num_kv_heads, context, program.head_size)
        self.cache = torch.zeros(shape, dtype=self._dtype, device=device.torch_device)
        # [past_length, -, token, -]: one copy from the host sets both; kernels want 16 bytes.
        self.state = torch.zeros(4, dtype=torch.int64, device=device.torch_device)
        self.past_length, self.token = self.state[0:1], self.state[2:3]
        self.ids = torch.zeros(max_rows, dtype=torch.int64, device=device.torch_device)
        self.wanted = torch.zeros(LOGITS_ROWS, dtype=torch.int64, device=device.torch_device)
        self._buffers = _Buffers(program, self._dtype, device.torch_device, max_rows)
        self._layers = [self._placed(layer, index) for index, layer in enumerate(program.layers)]
        self._lm_head = self._ready(program.lm_head)
        self.logits = self._empty(LOGITS_ROWS, program.vocab_size)
        self.logits32 = torch.zeros(
            (LOGITS_ROWS, program.vocab_size), dtype=torch.float32, device=device.torch_device
        )
        self._workspace = self._zeroed_workspace(max_rows)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers but weights and KV cache."""
        own = (self.ids, self.logits, self.logits32, self._workspace)
        return self._buffers.nbytes + sum(tensor.nbytes for tensor in own)

    def run(self, rows: int) -> None:
        """Append the first `rows` of `ids` to the cache."""
        self._pass(self.ids, rows)

    def row_logits(self, count: int) -> None:
        """Logits of the rows `wanted[:count]` of the last pass, into `logits32[:count]`."""
        buffers = self._buffers
        for source, target in (
            (buffers.branch, buffers.wanted_branch),
            (buffers.residual, buffers.wanted_residual),
        ):
            self._call(
                "awq_edge_gather_rows",
                source.data_ptr(),
                self.wanted.data_ptr(),
                target.data_ptr(),
                count,
                self._program.hidden_size,
                self._kernel_dtype,
            )
        self._head(buffers.wanted_branch, buffers.wanted_residual, count)
        self.logits32[:count].copy_(self.logits[:count])

    def step(self) -> None:
        """Append `token`; its logits into `logits32[0]`."""
        self._pass(self.token, 1)
        self._head(self._buffers.branch, self._buffers.residual, 1)
        self.logits32[:1].copy_(self.logits[:1])

    def greedy_step(self) -> None:
        """Append `token`, and replace it with the likeliest next token."""
        self._pass(self.token, 1)
        self._head(self._buffers.branch, self._buffers.residual, 1)
        self._call(
            "awq_edge_sample",
            Sampler(
                dtype=self._kernel_dtype,
                rows=1,
                vocab=self._program.vocab_size,
                greedy=1,
                logits=self.logits.data_ptr(),
                ids=self.token.data_ptr(),
            ),
            self._workspace.data_ptr(),
            self._workspace.nbytes,
        )
        self._call("awq_edge_advance", self.past_length.data_ptr(), 1, 1)

    def _ready(self, linear: Linear) -> ReadyLinear:
        return ready_linear(linear, self._tensors, self._kernels, self._dtype)

    def _placed(self, layer: Layer, index: int) -> _PlacedLayer:
        qkv = self._buffers.of_qkv(len(layer.qkv))
        attention = self._attention_parameters(layer, index)
        attention.q, attention.k, attention.v = qkv.addresses
        attention.q_stride, attention.k_stride, attention.v_stride = qkv.strides
        return _PlacedLayer(
            attention_norm=self._tensors[layer.attention_norm],
            qkv=[self._ready(linear) for linear in layer.qkv],
            qkv_outputs=qkv.outputs,
            attention=attention,
            attention_out=self._ready(layer.attention_out),
            mlp_norm=self._tensors[layer.mlp_norm],
            gate_up=[self._ready(linear) for linear in layer.gate_up],
            mlp_out=self._ready(layer.mlp_out),
        )

    def _attention_parameters(self, layer: Layer, index: int) -> AttentionParameters:
        """The attention parameters of one layer that no call changes: all but the addresses of q, k
        and v."""
        program = self._program
        keys, values = self.cache[index]
        return AttentionParameters(
            dtype=self._kernel_dtype,
            kv_dtype=self._kernel_dtype,
            batch=1,
            num_heads=program.num_heads,
            num_kv_heads=program.num_kv_heads,
            head_size=program.head_size,
            rotary_size=program.rotary_size,
            context=self.cache.shape[3],
            window=layer.window or 0,
            scale=program.attention_scale,
            soft_cap=0.0,
            past_length=self.past_length.data_ptr(),
            cosine=self._tensors[program.cosine].data_ptr(),
            sine=self._tensors[program.sine].data_ptr(),
            q_norm=self._address(layer.q_norm),
            k_norm=self._address(layer.k_norm),
            norm_eps=program.norm_eps,
            key_cache=keys.data_ptr(),
            value_cache=values.data_ptr(),
            y=self._buffers.attended.data_ptr(),
        )

    def _pass(self, ids: torch.Tensor, rows: int) -> None:
        """All layers over `rows` tokens: `residual` and `branch`, whose sum is the last hidden
        state."""
        program, buffers = self._program, self._buffers
        self._call(
            "awq_edge_embedding",
            ids.data_ptr(),
            self._tensors[program.embedding].data_ptr(),
            buffers.residual.data_ptr(),
            rows,
            program.hidden_size,
            program.vocab_size,
            1.0,
            self._kernel_dtype,
        )
        for index, layer in enumerate(self._layers):
            if index == 0:
                self._norm(buffers.residual, None, layer.attention_norm, rows)
            else:
                self._norm(buffers.branch, buffers.residual, layer.attention_norm, rows)
            self._attention(layer, rows)
            self._norm(buffers.branch, buffers.residual, layer.mlp_norm, rows)
            self._mlp(layer, rows)

    def _attention(self, layer: _PlacedLayer, rows: int) -> None:
        buffers = self._buffers
        for linear, y in zip(layer.qkv, layer.qkv_outputs, strict=True):
            self._linear(linear, buffers.normed, y, rows)
        layer.attention.tokens = rows
        self._call(
            "awq_edge_cached_attention",
            layer.attention,
            self._workspace.data_ptr(),
            self._workspace.nbytes,
        )
        self._linear(layer.attention_out, buffers.attended, buffers.branch, rows)

    def _mlp(self, layer: _PlacedLayer, rows: int) -> None:
        buffers, size = self._buffers, self._program.intermediate_size
        if len(layer.gate_up) == 2:
            gate, up = buffers.gate[:rows], buffers.up[:rows]
            for linear, y in zip(layer.gate_up, (buffers.gate, buffers.up), strict=True):
                self._linear(linear, buffers.normed, y, rows)
            torch.nn.functional.silu(gate, inplace=True)
            torch.mul(gate, up, out=buffers.product[:rows])
        elif layer.gate_up[0].out_features == size:  # the epilogue has multiplied
            self._linear(layer.gate_up[0], buffers.normed, buffers.product, rows)
        else:
            both = buffers.gate_up.view(-1)[: rows * 2 * size].view(rows, 2 * size)
            self._linear(layer.gate_up[0], buffers.normed, both, rows)
            self._call(
                "awq_edge_activation",
                both.data_ptr(),
                both[:, size:].data_ptr(),
                buffers.product.data_ptr(),
                rows,
                size,
                2 * size,
                Activation.SILU,
                self._kernel_dtype,
            )
        self._linear(layer.mlp_out, buffers.product, buffers.branch, rows)

    def _head(self, branch: torch.Tensor, residual: torch.Tensor, count: int) -> None:
        self._norm(branch, residual, self._tensors[self._program.final_norm], count)
        self._linear(self._lm_head, self._buffers.normed, self.logits, count)

    def _norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, rows: int
    ) -> None:
        """`normed` = norm of x, or of residual += x."""
        norm = NormParameters(
            kind=NormKind.RMS,
            dtype=self._kernel_dtype,
            rows=rows,
            size=self._program.hidden_size,
            eps=self._program.norm_eps,
            residual_scale=1.0,
            x=x.data_ptr(),
            residual=None if residual is None else residual.data_ptr(),
            weight=weight.data_ptr(),
            y=self._buffers.normed.data_ptr(),
        )
        self._call("awq_edge_normalize", norm)

    def _linear(self, linear: ReadyLinear, x: torch.Tensor, y: torch.Tensor, rows: int) -> None:
        linear.run(x[:rows], y[:rows], self._workspace, self._device.stream)

    def _call(self, name: str, *arguments: object) -> None:
        self._kernels.call(name, *arguments, self._device.stream)

    def _address(self, name: str | None) -> int | None:
        return None if name is None else self._tensors[name].data_ptr()

    def _empty(self, rows: int, size: int) -> torch.Tensor:
        return torch.zeros((rows, size), dtype=self._dtype, device=self._device.torch_device)

    def _zeroed_workspace(self, max_rows: int) -> torch.Tensor:
        """One workspace for all calls, which run one after the other."""
        kernels = self._kernels
        sizes = [COUNTER_BYTES, self._lm_head.workspace_bytes(LOGITS_ROWS)]
        sizes.append(kernels.size("awq_edge_sample_workspace", 1, self._program.vocab_size))
        for layer in self._layers:
            linears = (*layer.qkv, layer.attention_out, *layer.gate_up, layer.mlp_out)
            sizes += [linear.workspace_bytes(max_rows) for linear in linears]
            layer.attention.tokens = max_rows
            sizes.append(kernels.size("awq_edge_cached_attention_workspace", layer.attention))
        return torch.zeros(max(sizes), dtype=torch.uint8, device=self._device.torch_device)


@dataclass(frozen=True)
class _PlacedLayer:
    """A layer with its weights on the device."""

    attention_norm: torch.Tensor
    qkv: list[ReadyLinear]
    qkv_outputs: list[torch.Tensor]  # the output address of each linear of `qkv`
    attention: AttentionParameters  # complete but for the number of tokens
    attention_out: ReadyLinear
    mlp_norm: torch.Tensor
    gate_up: list[ReadyLinear]
    mlp_out: ReadyLinear


@dataclass(frozen=True)
class _QkvPlaces:
    """Where linears write q, k and v, and where the attention reads them: addresses, and elements
    from token to token."""

    outputs: list[torch.Tensor]
    addresses: list[int]
    strides: list[int]


class _Buffers:
    """Activations of up to `rows` tokens. Buffers that are never in use together share memory."""

    def __init__(
        self, program: CudaProgram, dtype: torch.dtype, device: torch.device, rows: int
    ) -> None:
        hidden, inner = program.hidden_size, program.intermediate_size
        kv_size = program.num_kv_heads * program.head_size
        q_size = program.num_heads * program.head_size
        self._qkv_sizes = [q_size, kv_size, kv_size]
        self._tensors: list[torch.Tensor] = []

        def empty(count: int, size: int) -> torch.Tensor:
            self._tensors.append(torch.zeros((count, size), dtype=dtype, device=device))
            return self._tensors[-1]

        self.residual, self.branch, self.normed = (empty(rows, hidden) for _ in range(3))
        self._qkv = empty(rows, sum(self._qkv_sizes))
        self.attended = empty(rows, q_size)
        # Only where no epilogue multiplies gate and up: one array of both, or two.
        has_both = any(
            len(layer.gate_up) == 2 or layer.gate_up[0].kind == "dense" for layer in program.layers
        )
        count = rows if has_both else 0
        self.gate_up = empty(count, 2 * inner)
        self.gate, self.up = self.gate_up.view(2, count, inner)
        self.product = empty(rows, inner)
        self.wanted_branch, self.wanted_residual = (empty(LOGITS_ROWS, hidden) for _ in range(2))

    def of_qkv(self, count: int) -> _QkvPlaces:
        """For one linear of q, k and v side by side, or `count` = 3 of one each."""
        sizes, rows = self._qkv_sizes, self._qkv.shape[0]
        if count == 1:
            base, item = self._qkv.data_ptr(), self._qkv.element_size()
            addresses = [base + item * sum(sizes[:part]) for part in range(3)]
            return _QkvPlaces([self._qkv], addresses, [sum(sizes)] * 3)
        parts = torch.split(self._qkv.view(-1), [rows * size for size in sizes])
        outputs = [part.view(rows, size) for part, size in zip(parts, sizes, strict=True)]
        return _QkvPlaces(outputs, [output.data_ptr() for output in outputs], list(sizes))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors)
