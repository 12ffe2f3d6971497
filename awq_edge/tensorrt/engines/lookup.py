"""Find the engine of a bundle for this machine, and refuse the ones that do not match."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.directories import MANIFEST, Bundle, require_inside, verify_files
from awq_edge.artifacts.schema import read_manifest
from awq_edge.errors import ArtifactError
from awq_edge.kernels.interface import ABI_VERSION, LAYOUT_VERSION
from awq_edge.recipe.runtimes import require_runtime
from awq_edge.tensorrt.contract import PLUGIN_VERSION
from awq_edge.tensorrt.engines.manifest import EngineManifest, EngineProfile
from awq_edge.tensorrt.engines.places import bundle_sha256, engine_folders, engine_name
from awq_edge.tensorrt.engines.profiles import profiles_of

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Engine:
    """An engine's folder, its manifest read."""

    path: Path
    manifest: EngineManifest

    @property
    def file(self) -> Path:
        """The file that TensorRT deserializes."""
        return self.path / self.manifest.engine

    @classmethod
    def open(cls, path: Path) -> Engine:
        """Read manifest.json; `check` compares it. Raises ArtifactError when it cannot be read."""
        file = path / MANIFEST
        if not file.exists():
            raise ArtifactError(f"{path} has no {MANIFEST}; {_again(path)}")
        manifest = read_manifest(EngineManifest, file, remedy=_again(path))
        require_inside(path, manifest.files)
        return cls(path, manifest)


def find_engine(bundle: Bundle, runtime: str, version: str, sm: str) -> Engine:
    """The engine of `bundle` for this machine, whole and matching.

    runtime: "tensorrt-rtx" or "tensorrt".
    version: TensorRT's own, complete.
    sm: "SM89".

    Raises ArtifactError that says what is there instead, and the command that builds the missing
    one.
    """
    wanted = engine_name(runtime, version, sm)
    folders = [folder / wanted for folder in engine_folders(bundle)]
    existing = [folder for folder in folders if folder.is_dir()]
    if not existing:
        raise ArtifactError(
            f"{bundle.path} has no engine {wanted}{_others(bundle)}; "
            f"build it with `{_command(bundle, runtime, sm)}`"
        )
    engine = Engine.open(existing[0])
    check(engine, bundle, runtime, version, sm)
    return engine


def check(engine: Engine, bundle: Bundle, runtime: str, version: str, sm: str) -> None:
    """Compare an engine with the bundle and the machine, then its files with its manifest.

    Raises ArtifactError naming the first field that differs, or the file that is damaged.
    """
    manifest, expected = engine.manifest, bundle_sha256(bundle)
    fields = [
        ("runtime", manifest.runtime, runtime),
        ("runtime_version", manifest.runtime_version, version),
        ("sm", manifest.sm, sm),
    ]
    if manifest.plugin is not None:
        fields += [
            ("plugin.plugin_version", manifest.plugin.plugin_version, PLUGIN_VERSION),
            ("plugin.layout_version", str(manifest.plugin.layout_version), str(LAYOUT_VERSION)),
            ("plugin.abi_version", str(manifest.plugin.abi_version), str(ABI_VERSION)),
        ]
    fix = f"build it again with `{_command(bundle, runtime, sm)}`"
    for name, actual, needed in fields:
        if actual != needed:
            raise ArtifactError(
                f"{engine.path} does not match this machine: {name} is {actual}, needed is "
                f"{needed}; {fix}"
            )
    if manifest.bundle_sha256 != expected:
        raise ArtifactError(
            f"{engine.path} was built from another export: bundle_sha256 is "
            f"{manifest.bundle_sha256[:_SHOWN_DIGITS]}..., that of {bundle.path} is "
            f"{expected[:_SHOWN_DIGITS]}...; {fix}"
        )
    if manifest.profiles != profiles_of(bundle.manifest):
        raise ArtifactError(
            f"{engine.path} has other profiles than this version runs: "
            f"{_profiles(manifest.profiles)}, needed are "
            f"{_profiles(profiles_of(bundle.manifest))}; {fix}"
        )
    if manifest.engine not in manifest.files:
        raise ArtifactError(f"{engine.path / MANIFEST} has no hash of {manifest.engine}; {fix}")
    try:
        verify_files(engine.path, manifest.files)
    except ArtifactError as error:
        problem = str(error).rpartition("; ")[0]
        raise ArtifactError(f"{problem}; {fix}") from None


def _profiles(profiles: Sequence[EngineProfile]) -> str:
    """Profiles in words: "decode of 1 to 16 tokens and prefill of 17 to 512"."""
    return " and ".join(f"{p.name} of {p.min_tokens} to {p.max_tokens} tokens" for p in profiles)


def _others(bundle: Bundle) -> str:
    """The engines that are there, in parentheses."""
    names = {
        folder.name
        for root in engine_folders(bundle)
        if root.is_dir()
        for folder in root.iterdir()
        if (folder / MANIFEST).is_file() and not folder.name.startswith(".")
    }
    return f" (it has {', '.join(sorted(names))})" if names else ""


def _command(bundle: Bundle, runtime: str, sm: str) -> str:
    built = require_runtime(runtime).engine
    target = f" --target {sm}" if built is not None and built.ahead_of_time else ""
    return f"awq-edge build {shlex.quote(str(bundle.path))} --runtime {runtime}{target}"


def _again(path: Path) -> str:
    return f"remove {path} and run `awq-edge build` again"
