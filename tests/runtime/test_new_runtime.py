"""A runtime from outside the package, all of it in this file; and the example of the guide."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ConfigError, RuntimeUnavailableError
from awq_edge.fit.fit import Asked, fit
from awq_edge.fit.models import find_model
from awq_edge.inspect.artifact import inspect_artifact
from awq_edge.program.program import Linear, Program
from awq_edge.program.sources import Sources
from awq_edge.program.storage import Form, onnxruntime_form
from awq_edge.program.stored import StoredLinear
from awq_edge.program.weights import Dtype, of_array
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe
from awq_edge.recipe.runtimes import Memory, Runtime, load, register, runtimes
from awq_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from awq_edge.runtime.memory import ModelSizes
from awq_edge.runtime.session import SessionInfo, SessionOptions

GUIDE = Path(awq_edge.__file__).parents[1] / "docs" / "add-a-backend.md"
# onnxruntime's activations are 8 bits wide in both: what is left is the order of sums.
TOLERANCE = 1e-3
PROCESS, PER_POSITION = 12_345_678, 1_000


class SummingSession(OnnxRuntimeSession):
    """onnxruntime's session under a name of its own."""

    @property
    def info(self) -> SessionInfo:
        return replace(super().info, backend="summing")


def open_session(bundle: Bundle, options: SessionOptions) -> SummingSession:
    return SummingSession(bundle, options)


def lower(checkpoint: object, spec: object, recipe: object) -> object:
    """onnxruntime's graph, and beside each linear's scales a float32 sum a row."""
    from awq_edge.exporter.lower_onnxruntime import build

    lowered = build(checkpoint, spec, recipe)
    sums = [
        of_array(f"{weight.name}.sums", np.zeros(weight.shape[0]), "float32", weight.part)
        for weight in lowered.weights
        if weight.name.endswith("scales")
    ]
    return replace(lowered, weights=(*lowered.weights, *sums))


def form(recipe: Recipe, program: Program) -> Form:
    """As `lower` stores weights."""
    known = onnxruntime_form(recipe, program)

    def summed(
        linears: Sequence[Linear], places: tuple[int, ...], sources: Sources, dtype: Dtype
    ) -> StoredLinear:
        stored = known.quantized(linears, places, sources, dtype)
        sums = of_array("sums", np.zeros(stored.out_features), "float32", linears[0].part)
        return replace(stored, tensors={**stored.tensors, "sums": sums})

    return replace(known, quantized=summed)


def activations(sizes: ModelSizes, context: int) -> int:
    return PER_POSITION * context


def check(recipe: object, model: object) -> None:
    if model is not None and model.decoder.num_layers > 30:  # type: ignore[attr-defined]
        raise ConfigError("runtime summing takes 30 layers at most")


SUMMING = Runtime(
    name="summing",
    session=f"{__name__}:open_session",
    lowering=f"{__name__}:lower",
    checks=f"{__name__}:check",
    activation_dtypes=("float32",),
    storage=f"{__name__}:form",
    memory=Memory(
        process=PROCESS, activations=f"{__name__}:activations", note="sums were not measured"
    ),
    on_gpu=False,
    uses_kernels=False,
)


@pytest.fixture(scope="module")
def summing() -> Iterator[Runtime]:
    register(SUMMING)
    yield SUMMING
    del runtimes()["summing"]


@pytest.fixture(scope="module")
def bundle(summing: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("torch", reason="needs the [host] extra")
    out = tmp_path_factory.mktemp("summing") / "demo"
    return awq_edge.export("demo", out, load_recipe(runtime="summing", method="rtn", context=128))


def test_it_runs_and_is_inspected(bundle: Bundle) -> None:
    assert bundle.manifest.runtime == "summing"
    with awq_edge.load(bundle.path, threads=1) as model:
        assert model.session.info.backend == "summing"
        assert model.generate("Once", max_new_tokens=4, ignore_eos=True).text
    described = inspect_artifact(bundle.path)
    assert "summing" in described.model_dump_json()


def test_fit_counts_by_its_record(bundle: Bundle) -> None:
    recipe = load_recipe("cpu").overridden({"runtime.backend": "summing"})
    report = fit(find_model("demo"), recipe, Asked(context=128))
    assert report.predicted_bytes.overhead == PROCESS
    assert report.predicted_bytes.activations == 128 * PER_POSITION
    assert report.predicted_bytes.weights == sum(bundle.manifest.part_bytes.values())
    assert report.weight_bytes["packing"] == 0
    plain = fit(find_model("demo"), load_recipe("cpu"), Asked(context=128))
    assert plain.weight_bytes["blocks"] < report.weight_bytes["blocks"]
    assert "sums were not measured" in report.notes


def test_what_it_cannot_execute_is_refused(summing: Runtime, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    with pytest.raises(ConfigError, match="runtime summing executes float32 activations"):
        awq_edge.export(
            "demo",
            tmp_path / "b",
            load_recipe(runtime="summing", activation_dtype="float16"),
        )
    with pytest.raises(ConfigError, match="--linear native is for the runtimes tensorrt and"):
        awq_edge.export("demo", tmp_path / "b", load_recipe(runtime="summing", linear="native"))
    recipe = load_recipe("cpu").overridden({"runtime.backend": "summing"})
    refused = fit(find_model("qwen3-4b"), recipe, Asked())
    assert refused.verdict == "refused" and "30 layers at most" in refused.reason


def test_recipes_may_name_it(summing: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "cpu"\n[runtime]\nbackend = "summing"\n', encoding="utf-8")
    assert load_recipe(str(file)).runtime.record is summing


def test_names_that_are_not_registered(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"allowed values: 'cuda', 'onnxruntime'.*, 'tensorrt'"):
        load_recipe("cpu").overridden({"runtime.backend": "sumning"})
    with pytest.raises(ConfigError, match="runtime 'summing' is there already"):
        register(replace(SUMMING, on_gpu=True))
    manifest = bundle.manifest.model_copy(update={"runtime": "sumning"})
    with pytest.raises(RuntimeUnavailableError, match="this version has no backend for it"):
        awq_edge.runtime.backends.open_session(Bundle(bundle.path, manifest), SessionOptions())


def test_functions_of_every_record_are_there() -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    for record in runtimes().values():
        names = [record.session, record.lowering, record.checks, record.storage]
        memory = record.memory
        for name in [*names, memory.activations, memory.arenas, memory.packing]:
            assert name is None or callable(load(name))


def test_default_recipes_are_of_the_runtime_or_of_a_cpu() -> None:
    known = {recipe.name: recipe.runtime.backend for recipe in list_recipes()}
    assert all(known[record.recipe] in (name, "onnxruntime") for name, record in runtimes().items())


def test_nothing_compares_names_of_runtimes() -> None:
    """A new one would fall through. "cuda" is a kind of device for torch too."""
    names = set(runtimes()) - {"cuda"}
    package = Path(awq_edge.__file__).parent
    compared = [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in names
    ]
    assert compared == []


@pytest.fixture
def recomputing(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """The guide's files, in the places that it names."""
    text = GUIDE.read_text(encoding="utf-8")
    files = re.findall(r"`awq_edge/([\w/]+)\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert len(files) == 2
    record = None
    for path, code in files:
        name = f"awq_edge.{path.replace('/', '.')}"
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, path, "exec"), module.__dict__)
        record = getattr(module, "RUNTIME", record)
    assert isinstance(record, Runtime)
    monkeypatch.setitem(runtimes(), record.name, record)
    return record


def test_the_guide_s_example(recomputing: Runtime, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    options = {"method": "rtn", "context": 64}
    mine = awq_edge.export("demo", tmp_path / "mine", load_recipe(runtime="recomputing", **options))
    known = awq_edge.export("demo", tmp_path / "known", load_recipe("cpu", **options))
    with awq_edge.load(mine.path) as one, awq_edge.load(known.path, threads=1) as other:
        assert one.session.info.backend == "recomputing"
        ids = one.tokenizer.encode("Once upon a time there was a dog")
        expected = [other.session.prefill(ids).copy(), other.session.decode(5)]
        found = [one.session.prefill(ids).copy(), one.session.decode(5)]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
