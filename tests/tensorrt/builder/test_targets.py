"""Which architecture is built for: by flag, by recipe, by machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ConfigError
from awq_edge.recipe.recipes import load_recipe
from awq_edge.tensorrt.builder.targets import runtime_of, targets_of
from tests.tensorrt.engine_bundles import JETPACK_7, RTX, edit_manifest, export_for


@pytest.fixture(scope="session")
def exported_rtx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_for(checkpoint, tmp_path_factory.mktemp("rtx") / "bundle", RTX).path


@pytest.fixture
def rtx(exported_rtx: Path, tmp_path: Path) -> Bundle:
    import shutil

    return Bundle.open(Path(shutil.copytree(exported_rtx, tmp_path / "bundle")))


def targets(bundle: Bundle, *asked: str, recipe: str = RTX) -> tuple[str, ...]:
    return targets_of(bundle, load_recipe(recipe), "tensorrt-rtx", asked)


def test_targets_in_any_spelling_once(rtx: Bundle) -> None:
    assert targets(rtx, "SM89", "8.6", "sm_120", "89") == ("SM89", "SM86", "SM120")


def test_recipe_names_the_target(rtx: Bundle) -> None:
    assert targets(rtx) == ("SM89",)


@pytest.mark.parametrize("name", ["SM", "ada", "8.9.1", "SM8", "-1"])
def test_other_words_are_refused(rtx: Bundle, name: str) -> None:
    with pytest.raises(ConfigError, match="must be an architecture such as SM89"):
        targets(rtx, name)


def test_architecture_that_rtx_has_not_is_refused(rtx: Bundle) -> None:
    with pytest.raises(ConfigError, match="SM90: TensorRT for RTX builds for SM75, SM80"):
        targets(rtx, "SM90")
    with pytest.raises(ConfigError, match="SM87: TensorRT for RTX builds for"):
        targets(rtx, recipe=JETPACK_7)


def test_gpu_that_is_here_may_be_tried(rtx: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_edge.tensorrt.builder.targets.compute_capability", lambda: 90)
    assert targets(rtx, "SM90") == ("SM90",)


def test_turing_takes_16_bit_graphs_without_plugins_only(rtx: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"plugin nodes \(CachedAttention, W4A16Linear\), which"):
        targets(rtx, "SM75")
    native = edit_manifest(rtx, plugin=None)
    with pytest.raises(ConfigError, match="has quantized weights, which need SM80 or newer"):
        targets(native, "SM75")
    assert targets(edit_manifest(native, method="none"), "SM75") == ("SM75",)


def test_runtime_is_the_bundles_or_the_other_tensorrt(rtx: Bundle) -> None:
    assert runtime_of(rtx, None) == "tensorrt-rtx"
    assert runtime_of(rtx, "tensorrt") == "tensorrt"
    with pytest.raises(
        ConfigError, match="--runtime cuda: engines are for tensorrt or tensorrt-rtx"
    ):
        runtime_of(rtx, "cuda")
    cpu = edit_manifest(rtx, runtime="onnxruntime")
    with pytest.raises(ConfigError, match="was exported for onnxruntime, which needs no engine"):
        runtime_of(cpu, None)
