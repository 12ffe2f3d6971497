"""From a program to the calls of the cuda runtime.

    q, k, v                 one linear where their formats agree, else two or three; columns of them
    gate, up                one linear with an epilogue where they are quantized alike
    q_norm, k_norm, rotation, cache, attention
                            one call
    residual sum, norm      one call

What is emitted says what the model needs: an operation that the runtime does not have yet is
emitted like any other, and refused by `checks_cuda`. Needs neither onnx nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from awq_edge.exporter.cuda_arena import RowsShape, placed
from awq_edge.kernels.interface import LAYOUT_VERSION, Epilogue
from awq_edge.program.program import (
    Attention,
    Embedding,
    Experts,
    Linear,
    LinearGroup,
    Mlp,
    Norm,
    Output,
    Program,
    RotationName,
    Sublayer,
)
from awq_edge.program.storage import Storage
from awq_edge.program.stored import StoredLinear
from awq_edge.program.weights import Weight
from awq_edge.runtime.backends.cuda.program import (
    IDS,
    PAST_LENGTH,
    WANTED,
    Call,
    CudaProgram,
    Dtype,
    Rows,
    State,
    TensorPlace,
    View,
)

Attributes = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Emitted:
    """program: its tensors have no places yet. weights: in the order of use."""

    program: CudaProgram
    weights: tuple[Weight, ...]

    def placed(self, offsets: dict[str, int]) -> CudaProgram:
        """The program with its tensors at these offsets of the weight file."""
        places = {
            weight.name: TensorPlace.model_validate(
                {"dtype": weight.dtype, "shape": weight.shape, "offset": offsets[weight.name]}
            )
            for weight in self.weights
        }
        return self.program.model_copy(update={"tensors": places})


def emit_cuda(program: Program, storage: Storage, context: int) -> Emitted:
    """The calls of a program. context: positions of the rotary tables."""
    return _Emitter(program, storage, context).emit()


@dataclass(frozen=True)
class _Branch:
    """What is still to be added to the hidden state: a buffer, (normed), (multiplied)."""

    x: str
    post_norm: Norm | None
    residual_scale: float


def arena_bytes(program: Program, storage: Storage) -> dict[str, int]:
    """Bytes of activations a row, of tokens and of wanted rows; layers of each kind are enough."""
    arenas = emit_cuda(program, storage, context=1).program.arenas
    return {str(rows): size for rows, size in arenas.items()}


class _Emitter:
    def __init__(self, program: Program, storage: Storage, context: int) -> None:
        self._program = program
        self._storage = storage
        self._context = context
        dtype = storage.form.dtype
        self._dtype: Dtype = "bfloat16" if dtype == "bfloat16" else "float16"
        self._rows: Rows = "tokens"
        self._calls: list[Call] = []
        self._shapes: dict[str, RowsShape] = {}
        self._views: dict[str, View] = {}
        self._state: dict[str, State] = {}
        self._weights: dict[str, Weight] = {}
        # The hidden state, and what is still to be added to it: names of buffers.
        self._hidden = ""
        self._branch: _Branch | None = None

    def emit(self) -> Emitted:
        """Walk the program; then give buffers their places."""
        self._embedding(self._program.embedding)
        for block in self._program.blocks:
            for sublayer in block.sublayers:
                self._sublayer(sublayer)
        scores, logits = self._output(self._program.output)
        buffers, arenas = placed(self._shapes, self._views, self._calls, (scores, logits))
        program = CudaProgram(
            layout_version=LAYOUT_VERSION,
            activation_dtype="bfloat16" if self._dtype == "bfloat16" else "float16",
            vocab_size=self._program.vocab_size,
            context=self._context,
            logits=logits,
            scores=scores,
            arenas=arenas,
            state=self._state,
            buffers=buffers,
            views=self._views,
            calls=tuple(self._calls),
            tensors={},
        )
        return Emitted(program, tuple(self._weights.values()))

    def _embedding(self, embedding: Embedding) -> None:
        """ids ─ embedding ─ (project_in) ─ (add_positions)"""
        table = embedding.table
        x = self._call(
            "embedding",
            table.name.removesuffix(".weight"),
            {"ids": IDS, "table": self._tensor(self._storage.table(embedding))},
            table.shape[1],
            {"scale": embedding.scale},
        )
        if embedding.projection is not None:
            x = self._linear(embedding.projection, x)
        if embedding.positions is not None:
            name = embedding.positions.name
            inputs = {
                "x": x,
                "table": self._tensor(self._storage.tensor(embedding.positions)),
                "past_length": PAST_LENGTH,
            }
            offset = {"offset": embedding.position_offset}
            self._append("add_positions", name.removesuffix(".weight"), inputs, {"y": x}, offset)
        self._hidden = x

    def _sublayer(self, sublayer: Sublayer) -> None:
        """(norm) ─ mixer, left to be normed and added by the next norm."""
        x = self._summed(sublayer.norm)
        mixer = sublayer.mixer
        if isinstance(mixer, Attention):
            y = self._attention(mixer, x)
        elif isinstance(mixer, Mlp):
            y = self._mlp(mixer, x)
        else:
            y = self._experts(mixer, x)
        self._branch = _Branch(y, sublayer.post_norm, sublayer.residual_scale)
        if sublayer.end_norm is not None:
            self._hidden = self._summed(sublayer.end_norm)

    def _summed(self, norm: Norm | None) -> str:
        """The hidden state with the branch added to it, normed where there is a norm."""
        branch, self._branch = self._branch, None
        if branch is None:
            return self._hidden if norm is None else self._norm(norm, self._hidden)
        x, post = branch.x, branch.post_norm
        if post is not None and norm is not None and (post.kind, post.eps) != (norm.kind, norm.eps):
            x, post = self._norm(post, x), None  # one call has one kind and epsilon
        inputs = {"residual": self._hidden}
        if post is not None:
            names = map(self._tensor, self._storage.norm(post))
            inputs |= dict(zip(("post_weight", "post_bias"), names, strict=False))
        scale, outputs = branch.residual_scale, {"residual": self._hidden}
        if norm is not None:
            return self._norm(norm, x, inputs, outputs, scale)
        kind, eps = ("rms", 1.0) if post is None else (post.kind, post.eps)
        attributes = {"eps": eps, "residual_scale": scale}
        self._append(f"{kind}_norm", f"{x}.sum", {"x": x, **inputs}, outputs, attributes)
        return self._hidden

    def _norm(
        self,
        norm: Norm,
        x: str,
        inputs: dict[str, str] | None = None,
        outputs: dict[str, str] | None = None,
        residual_scale: float = 1.0,
    ) -> str:
        """The norm of x, or of what the residual among inputs and outputs becomes."""
        names = map(self._tensor, self._storage.norm(norm))
        weights = dict(zip(("weight", "bias"), names, strict=False))
        return self._call(
            f"{norm.kind}_norm",
            norm.name,
            {"x": x, **(inputs or {}), **weights},
            self._width(x),
            {"eps": norm.eps, "residual_scale": residual_scale},
            outputs,
        )

    def _attention(self, attention: Attention, x: str) -> str:
        """q, k, v ─ cached_attention ─ out"""
        size = attention.head_size
        inputs = dict(zip("qkv", self._linears(attention.qkv, x), strict=True))
        inputs["past_length"] = PAST_LENGTH
        for role, norm in (("q_norm", attention.q_norm), ("k_norm", attention.k_norm)):
            if norm is not None:
                inputs[role] = self._tensor(self._storage.norm(norm)[0])
        rotary = 0
        if attention.rotation is not None:
            rotary = self._rotation(attention.rotation, inputs)
        outputs: dict[str, str] = {}
        for part in ("key", "value"):
            name = f"{attention.name}.{part}"
            shape = (1, attention.num_kv_heads, "context", size)
            self._state[name] = State.model_validate({"dtype": self._dtype, "shape": shape})
            inputs[part] = outputs[part] = name
        window = attention.window or 0
        attributes: Attributes = {
            "num_heads": attention.num_heads,
            "num_kv_heads": attention.num_kv_heads,
            "head_size": size,
            "rotary_size": rotary,
            "window": window if window < self._context else 0,
            "scale": attention.scale,
            "soft_cap": attention.soft_cap or 0.0,
            "norm_eps": 0.0 if attention.q_norm is None else attention.q_norm.eps,
        }
        width = attention.num_heads * size
        y = self._call("cached_attention", attention.name, inputs, width, attributes, outputs)
        return self._linear(attention.out, y)

    def _rotation(self, name: RotationName, inputs: dict[str, str]) -> int:
        """Add the tables of a rotation to a call's inputs; returns the channels that it turns."""
        rope = dict(self._program.rotations)[name]
        cosine, sine = self._storage.rotation(name, rope, self._context)
        inputs |= {"cosine": self._tensor(cosine), "sine": self._tensor(sine)}
        return rope.rotary_size

    def _mlp(self, mlp: Mlp, x: str) -> str:
        """gate, up ─ activation ─ out, or one linear with an epilogue"""
        kind, inner = _operation(mlp.activation), mlp.inner_size
        gate = mlp.activation if mlp.is_gated else None
        first, *others = self._storage.linears(mlp.inputs, gate)
        if first.gate_up:
            y = self._stored(first, x, inner, f"{kind}_mul")
        elif gate is None and first.bits is not None and kind.upper() in Epilogue.__members__:
            y = self._stored(first, x, inner, kind)
        else:
            inputs = {"gate": self._stored(first, x, first.out_features)}
            if others:
                inputs["up"] = self._stored(others[0], x, inner)
            elif gate is not None:
                both = inputs["gate"]
                inputs = {
                    role: self._view(both, place, place * inner, inner)
                    for place, role in enumerate(("gate", "up"))
                }
            y = self._call(kind, f"{mlp.name}.activation", inputs, inner)
        return self._linear(mlp.out, y)

    def _experts(self, experts: Experts, x: str) -> str:
        """router ─ routed_experts"""
        inputs = {"x": x, "scores": self._linear(experts.router, x)}
        stored = self._storage.experts(experts)
        if stored is None:
            return self._call("dense_experts", experts.name, inputs, self._width(x))
        attributes: dict[str, int | float | str] = {
            "num_experts": len(experts.experts),
            "top_k": experts.per_token,
            "normalize": int(experts.is_normalised),
            "inner_size": experts.experts[0].inner_size,
            "epilogue": f"{_operation(experts.experts[0].activation)}_mul",
        }
        for part, linear in zip(("gate_up", "down"), stored, strict=True):
            attributes[f"{part}.bits"] = linear.bits or 0
            attributes[f"{part}.group_size"] = linear.group_size
            for role, weight in linear.tensors.items():
                inputs[f"{part}.{role}"] = self._tensor(weight)
        return self._call("routed_experts", experts.name, inputs, self._width(x), attributes)

    def _output(self, output: Output) -> tuple[str, str]:
        """rows that are wanted ─ norm ─ (project_out) ─ head ─ logits"""
        self._gather()
        x = self._summed(output.norm)
        if output.projection is not None:
            x = self._linear(output.projection, x)
        scores = self._linear(output.head, x)
        factors = {"scale": output.scale, "soft_cap": output.soft_cap or 0.0}
        width, name = self._width(scores), f"{output.head.name}.logits"
        return scores, self._call("logits", name, {"x": scores}, width, factors, dtype="float32")

    def _gather(self) -> None:
        """From here on, calls compute the wanted rows alone."""
        self._rows = "wanted"

        def gathered(x: str) -> str:
            inputs = {"x": x, "rows": WANTED}
            return self._call("gather_rows", f"wanted.{x}", inputs, self._width(x))

        self._hidden = gathered(self._hidden)
        if self._branch is not None:
            self._branch = replace(self._branch, x=gathered(self._branch.x))

    def _linears(self, group: LinearGroup, x: str) -> list[str]:
        """Outputs of linears of one input, as columns of what computes them."""
        outputs: dict[int, str] = {}
        for stored in self._storage.linears(group):
            y = self._stored(stored, x, stored.out_features)
            places = range(len(group.sizes)) if group.is_fused else stored.places
            column = 0
            for place in places:
                size = group.sizes[place]
                outputs[place] = y
                if len(places) > 1:
                    outputs[place] = self._view(y, place, column, size)
                column += size
        return [outputs[place] for place in sorted(outputs)]

    def _linear(self, linear: Linear, x: str) -> str:
        return self._stored(self._storage.linear(linear), x, linear.out_features)

    def _view(self, buffer: str, place: int, column: int, width: int) -> str:
        """Columns of a buffer; place: their number."""
        name = f"{buffer}[{place}]"
        self._views[name] = View(buffer=buffer, column=column, width=width)
        return name

    def _stored(self, stored: StoredLinear, x: str, width: int, epilogue: str = "none") -> str:
        """A linear of x. width: of its output."""
        inputs = {"x": x}
        inputs |= {role: self._tensor(weight) for role, weight in stored.tensors.items()}
        if stored.bits is None:
            return self._call("dense_linear", stored.name, inputs, width)
        attributes: Attributes = {
            "bits": stored.bits,
            "group_size": stored.group_size,
            "in_features": stored.in_features,
            "out_features": stored.out_features,
            "epilogue": epilogue,
        }
        return self._call("w4a16_linear", stored.name, inputs, width, attributes)

    def _call(
        self,
        operation: str,
        name: str,
        inputs: dict[str, str],
        width: int,
        attributes: Attributes | None = None,
        outputs: dict[str, str] | None = None,
        dtype: Dtype | None = None,
    ) -> str:
        """Append a call that writes rows of `width`, its output `y`, to a buffer of its name.

        dtype: None for the activations'.
        """
        self._shapes[name] = RowsShape(self._rows, width, dtype or self._dtype)
        self._append(operation, name, inputs, {"y": name, **(outputs or {})}, attributes)
        return name

    def _append(
        self,
        operation: str,
        name: str,
        inputs: dict[str, str],
        outputs: dict[str, str],
        attributes: Attributes | None = None,
    ) -> None:
        self._calls.append(
            Call(
                operation=operation,
                name=name,
                inputs=inputs,
                outputs=outputs,
                attributes={**(attributes or {})},
            )
        )

    def _tensor(self, weight: Weight) -> str:
        self._weights.setdefault(weight.name, weight)
        return weight.name

    def _width(self, name: str) -> int:
        return self._shapes[name].width


def _operation(activation: str) -> str:
    """The operation of an activation that config.json names."""
    return {"gelu_pytorch_tanh": "gelu_tanh"}.get(activation, activation)
