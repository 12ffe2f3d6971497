"""`awq-edge build`: check everything that can be checked, then build one engine after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from awq_edge._version import __version__
from awq_edge.artifacts.cache import cache_directory
from awq_edge.artifacts.directories import (
    MANIFEST,
    Bundle,
    BundleManifest,
    atomic_directory,
    hash_file,
)
from awq_edge.artifacts.file_names import RECIPE_FILE
from awq_edge.artifacts.input_files import read_json
from awq_edge.artifacts.outputs import require_disk
from awq_edge.artifacts.provenance import source_commit
from awq_edge.device.cuda_driver import device_name
from awq_edge.device.system_memory import read_system_memory
from awq_edge.errors import ArtifactError, RuntimeUnavailableError
from awq_edge.recipe.recipes import Recipe
from awq_edge.tensorrt.builder.job import BuildJob
from awq_edge.tensorrt.builder.memory import predict_build, require_memory
from awq_edge.tensorrt.builder.process import run_job
from awq_edge.tensorrt.builder.targets import engine_of, runtime_of, targets_of
from awq_edge.tensorrt.engines.contract import check_contract, plugin_contract
from awq_edge.tensorrt.engines.lookup import Engine, find_engine
from awq_edge.tensorrt.engines.manifest import ENGINE_FILE, EngineManifest, PluginContract
from awq_edge.tensorrt.engines.places import bundle_sha256, engine_name, writable_folder
from awq_edge.tensorrt.engines.profiles import profiles_of
from awq_edge.tensorrt.module import load_tensorrt
from awq_edge.units import release

# The engine has the weights once, and code beside them.
_ENGINE_CODE_BYTES = 64_000_000

# (engines built, engines, fraction of the one being built, what is being done)
Observer = Callable[[int, int, float, str], None]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and whether it was built now.

    reused: it was there already, whole, of this bundle and this TensorRT.
    """

    engine: Engine
    reused: bool


def build_engines(
    bundle: Bundle,
    *,
    runtime: str | None = None,
    targets: Sequence[str] = (),
    memory_check: bool = True,
    rebuild: bool = False,
    observer: Observer | None = None,
) -> Iterator[BuiltEngine]:
    """Build a bundle's engines into its folder, or the cache folder where that is read-only.

    runtime: "tensorrt-rtx" or "tensorrt"; None for the bundle's.
    targets: "SM89", ...; empty for the recipe's, or this machine's.
    memory_check: refuse a build that will not fit.
    rebuild: also engines that are there already.
    observer: called as a build goes on.

    Yields each engine when it is done.

    A build that was killed leaves nothing; the next one takes the engines that are whole as they
    are. Raises ConfigError (runtime, targets), RuntimeUnavailableError (no TensorRT, no kernels, an
    op contract of another version, or TensorRT's own refusal), ArtifactError (the bundle),
    ResourceError (memory, disk).
    """
    chosen = runtime_of(bundle, runtime)
    check_contract(bundle)
    recipe = _recipe(bundle)
    names = targets_of(bundle, recipe, chosen, targets)
    tensorrt = load_tensorrt(engine_of(chosen).module)
    _require_version(bundle.manifest, chosen, tensorrt)
    plan = _Plan(
        bundle=bundle,
        recipe=recipe,
        runtime=chosen,
        version=str(tensorrt.__version__),
        plugin=plugin_contract() if bundle.manifest.plugin is not None else None,
        memory_check=memory_check,
    )
    for index, sm in enumerate(names):

        def observe(fraction: float, phase: str, index: int = index, sm: str = sm) -> None:
            if observer is not None:
                observer(index, len(names), fraction, f"{sm}: {phase}")

        existing = None if rebuild else _existing(plan, sm)
        if existing is not None:
            yield BuiltEngine(existing, reused=True)
        else:
            observe(0.0, "starting")
            yield BuiltEngine(_build(plan, sm, observe), reused=False)


def build_engine(
    bundle: Bundle,
    *,
    runtime: str | None = None,
    target: str | None = None,
    observer: Observer | None = None,
) -> Engine:
    """The engine for one architecture, built unless it is there. As `build_engines`."""
    targets = () if target is None else (target,)
    return next(build_engines(bundle, runtime=runtime, targets=targets, observer=observer)).engine


@dataclass(frozen=True)
class _Plan:
    """The facts that the engines of one call share."""

    bundle: Bundle
    recipe: Recipe
    runtime: str
    version: str
    plugin: PluginContract | None
    memory_check: bool


def _recipe(bundle: Bundle) -> Recipe:
    path = bundle.path / RECIPE_FILE
    data = read_json(path, error=ArtifactError)
    try:
        return Recipe.model_validate(data)
    except ValueError:
        raise ArtifactError(f"{path} is not a recipe; export the bundle again") from None


def _require_version(manifest: BundleManifest, runtime: str, tensorrt: ModuleType) -> None:
    """Raise RuntimeUnavailableError when the TensorRT here is older than the graph wants."""
    minimum = manifest.min_runtime_version
    if minimum is None or runtime != manifest.runtime:
        return
    if release(tensorrt.__version__, 3) < release(minimum, 3):
        raise RuntimeUnavailableError(
            f"the bundle needs {runtime} {minimum} or newer, here is {tensorrt.__version__}; "
            "update it, or export the model with the recipe of this device"
        )


def _existing(plan: _Plan, sm: str) -> Engine | None:
    """The engine, where it is there and matches."""
    try:
        return find_engine(plan.bundle, plan.runtime, plan.version, sm)
    except ArtifactError:
        return None


def _build(plan: _Plan, sm: str, observe: Callable[[float, str], None]) -> Engine:
    manifest = plan.bundle.manifest
    workspace = plan.recipe.runtime.workspace_bytes
    if plan.memory_check:
        weights = sum(manifest.part_bytes.values())
        engine = engine_of(plan.runtime)
        needed = predict_build(weights, engine, workspace)
        unified = not engine.ahead_of_time and plan.recipe.device.unified_memory
        require_memory(needed, read_system_memory(), unified=unified)
    folder = writable_folder(plan.bundle)
    size = sum(manifest.part_bytes.values()) + _ENGINE_CODE_BYTES
    require_disk(folder, size, f"the engine of {manifest.model_name}")
    profiles = profiles_of(manifest)
    final = folder / engine_name(plan.runtime, plan.version, sm)
    with atomic_directory(final, overwrite=True) as work:
        job = BuildJob(
            module=engine_of(plan.runtime).module,
            graph=str(plan.bundle.path / manifest.graph),
            engine=str(work / ENGINE_FILE),
            sm=sm,
            plugins=plan.plugin is not None,
            profiles=profiles,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            timing_cache=_timing_cache(plan, sm),
            workspace_bytes=workspace,
        )
        figures = run_job(job, observe)
        described = EngineManifest(
            awq_edge_version=__version__,
            commit=source_commit(),
            model_name=manifest.model_name,
            runtime=plan.runtime,
            runtime_version=plan.version,
            sm=sm,
            bundle_sha256=bundle_sha256(plan.bundle),
            plugin=plan.plugin,
            profiles=profiles,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            build=figures,
            files={ENGINE_FILE: hash_file(work / ENGINE_FILE)},
        )
        text = json.dumps(described.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (work / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return Engine(final, described)


def _timing_cache(plan: _Plan, sm: str) -> str | None:
    """The file of this device's timings; None for a build that times nothing."""
    if engine_of(plan.runtime).ahead_of_time:
        return None
    device = re.sub(r"[^A-Za-z0-9]+", "-", device_name() or sm).strip("-")
    name = f"{plan.runtime}-{plan.version}-{sm}-{device}.cache"
    return str(Path(cache_directory()) / "timing" / name)
