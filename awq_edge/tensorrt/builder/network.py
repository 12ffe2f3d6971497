"""The parsed graph: TensorRT must see the inputs and outputs that the bundle's manifest names."""

from __future__ import annotations

from typing import Any

from awq_edge.artifacts.directories import TensorPort
from awq_edge.errors import ArtifactError
from awq_edge.tensorrt.builder.job import BuildJob
from awq_edge.tensorrt.engines.loading import TensorrtLog
from awq_edge.tensorrt.engines.manifest import ShapeRange

# numpy's name by TensorRT's.
_DTYPES = {
    "HALF": "float16",
    "BF16": "bfloat16",
    "FLOAT": "float32",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def parse(trt: Any, builder: Any, job: BuildJob, log: TensorrtLog) -> tuple[Any, Any]:
    """The network of a graph, and its parser, which has to live as long.

    Raises ArtifactError with TensorRT's reason, or with the input or output that is not as the
    bundle's manifest has it.
    """
    network = builder.create_network(_flags(trt, job.module))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(job.graph):
        errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ArtifactError(
            f"{job.module} {trt.__version__} does not read {job.graph}: "
            f"{errors[0] if errors else log.reason()}; export the model again with this version"
        )
    _let_attention_decompose(trt, network)
    _compare("input", job.inputs, network.num_inputs, network.get_input, job.graph)
    _compare("output", job.outputs, network.num_outputs, network.get_output, job.graph)
    return network, parser


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """TensorRT's own attention has fused kernels for some head sizes, and refuses the others unless
    it may use several kernels for one attention. (TensorRT 10.14 and newer; heads of 8 channels.)
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            # get_layer gives the base class; its `attention` is the subclass's.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _flags(trt: Any, module: str) -> int:
    """TensorRT 10 builds weakly typed networks unless told; TensorRT for RTX has no others."""
    if module == "tensorrt_rtx":
        return 0
    return int(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _describe(error: Any) -> str:
    node = error.node_name() if hasattr(error, "node_name") else ""
    text = " ".join(str(error.desc()).split())
    return f"node {node}: {text}" if node else text


def _compare(
    kind: str, ports: tuple[TensorPort, ...], count: int, tensor_of: Any, graph: str
) -> None:
    tensors = {tensor.name: tensor for tensor in (tensor_of(index) for index in range(count))}
    wanted = {port.name: port for port in ports}
    for name in sorted(tensors.keys() ^ wanted.keys()):
        where = "the graph" if name in tensors else "the bundle's manifest"
        raise ArtifactError(f"{graph}: only {where} has an {kind} {name}; export the model again")
    for name, port in wanted.items():
        dtype = _DTYPES.get(tensors[name].dtype.name, tensors[name].dtype.name)
        shape = tuple(tensors[name].shape)
        if dtype != port.dtype or not _agree(kind, shape, port.shape):
            raise ArtifactError(
                f"{graph}: {kind} {name} is {dtype} {list(shape)}, the bundle's manifest says "
                f"{port.dtype} {list(port.shape)}; export the model again"
            )


def _agree(kind: str, actual: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Compare a shape of TensorRT's, -1 for sizes that vary, with the manifest's.

    An output's size may be known to the manifest alone: where TensorRT cannot infer it.
    """
    if len(actual) != len(wanted):
        return False
    unknown = kind == "output"
    return all(
        a == -1 if isinstance(b, str) else a == b or (unknown and a == -1)
        for a, b in zip(actual, wanted, strict=True)
    )


def add_profiles(trt: Any, builder: Any, network: Any, config: Any, job: BuildJob) -> None:
    """The job's profiles, in their order. Raises ArtifactError for one that TensorRT refuses."""
    for expected, profile in enumerate(job.profiles):
        made = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shapes = profile.shapes[tensor.name]
            made.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
            if tensor.is_shape_tensor:
                made.set_shape_input(tensor.name, *_values(job, tensor.name, shapes))
        if config.add_optimization_profile(made) != expected:
            raise ArtifactError(
                f"{job.module} {trt.__version__} refuses the {profile.name} profile of {job.graph}"
            )


def _values(job: BuildJob, name: str, shapes: ShapeRange) -> tuple[list[int], ...]:
    """Values of an input that shapes are computed from: a length, of at most the context."""
    caches = [port.shape[2] for port in job.inputs if port.name.startswith("past.")]
    longest = next((size for size in caches if isinstance(size, int)), 0)
    if name != "past_length" or not longest:
        raise ArtifactError(
            f"{job.graph}: shapes depend on the values of input {name}, which have no known range"
        )
    (count,) = shapes.opt
    return [0] * count, [longest // 2] * count, [longest] * count
