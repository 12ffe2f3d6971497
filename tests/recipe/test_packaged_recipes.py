"""The recipes that come with the package: figures, sources, documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from awq_edge.errors import ConfigError
from awq_edge.recipe.files import recipe_folder
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe, recipe_keys
from awq_edge.units import (
    BANDWIDTH_UNITS,
    SIZE_UNITS,
)

GiB = 2**30
GB_S = 10**9
FILES = sorted(recipe_folder().glob("*.toml"))
NAMES = sorted(path.stem for path in FILES if not path.name.startswith("_"))
DEVICES = {  # what the project promises
    "cpu",
    "cuda",
    *(f"jetson-orin-nano-{size}" for size in ("4gb", "8gb")),
    *(f"jetson-orin-nx-{size}" for size in ("8gb", "16gb")),
    *(f"jetson-agx-orin-{size}" for size in ("32gb", "64gb")),
    "jetson-agx-thor",
    *(f"rtx-{gpu}-laptop-8gb" for gpu in (3070, 4060, 4070, 5060, 5070)),
    "rtx-4090",
}
JETPACK6 = sorted(f"{name}-jetpack6" for name in DEVICES if "orin" in name)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_promised_devices_are_there() -> None:
    assert {*DEVICES, *JETPACK6} <= set(NAMES)
    assert sorted(recipe.name for recipe in list_recipes()) == NAMES


def test_the_order_is_natural() -> None:
    names = [recipe.name for recipe in list_recipes()]
    assert names[0] == "cpu"
    assert names.index("jetson-orin-nx-8gb") < names.index("jetson-orin-nx-16gb")
    assert names.index("jetson-orin-nx-16gb") < names.index("rtx-3070-laptop-8gb")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe
    assert recipe.overridden({}) == recipe
    assert name.startswith(recipe.device.kind)
    if recipe.device.power_modes:
        rates = [mode.memory_bandwidth for mode in recipe.device.power_modes]
        assert max(rates) == recipe.device.memory_bandwidth


def test_every_shared_part_is_used() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    for path in FILES:
        if path.name.startswith("_"):
            assert any(f'extends = "{path.stem}"' in text for text in texts), path.name


@pytest.mark.parametrize(
    ("name", "capability", "sms", "memory", "bandwidth", "unified"),
    [
        ("jetson-orin-nano-4gb", "8.7", 4, 4, 51.0, True),
        ("jetson-orin-nano-8gb", "8.7", 8, 8, 102.0, True),
        ("jetson-orin-nx-8gb", "8.7", 8, 8, 102.0, True),
        ("jetson-orin-nx-16gb", "8.7", 8, 16, 102.0, True),
        ("jetson-agx-orin-32gb", "8.7", 14, 32, 204.8, True),
        ("jetson-agx-orin-64gb", "8.7", 16, 64, 204.8, True),
        ("jetson-agx-thor", "11.0", 20, 128, 273.0, True),
        ("rtx-3070-laptop-8gb", "8.6", 40, 8, 448.0, False),
        ("rtx-4060-laptop-8gb", "8.9", 24, 8, 256.0, False),
        ("rtx-4070-laptop-8gb", "8.9", 36, 8, 256.0, False),
        ("rtx-5060-laptop-8gb", "12.0", 26, 8, 384.0, False),
        ("rtx-5070-laptop-8gb", "12.0", 36, 8, 384.0, False),
        ("rtx-4090", "8.9", 128, 24, 1008.0, False),
    ],
)
def test_known_figures(
    name: str, capability: str, sms: int, memory: int, bandwidth: float, unified: bool
) -> None:
    device = load_recipe(name).device
    assert (device.compute_capability, device.sm_count) == (capability, sms)
    assert device.memory_bytes == memory * GiB
    assert device.memory_bandwidth == round(bandwidth * GB_S)
    assert device.unified_memory is unified


@pytest.mark.parametrize(
    ("name", "mode", "bandwidth", "default"),
    [
        ("jetson-orin-nano-8gb", "MAXN_SUPER", 102.0, False),
        ("jetson-orin-nano-8gb", "25W", 102.0, True),
        ("jetson-orin-nano-8gb", "15W", 68.0, False),
        ("jetson-orin-nano-4gb", "MAXN_SUPER", 51.0, False),
        ("jetson-orin-nano-4gb", "10W", 34.0, False),
        ("jetson-orin-nx-16gb", "40W", 102.0, True),
        ("jetson-orin-nx-16gb", "10W", 68.0, False),
        ("jetson-agx-orin-64gb", "MODE_15W", 136.5, False),
        ("jetson-agx-thor", "120W", 273.0, True),
    ],
)
def test_known_power_modes(name: str, mode: str, bandwidth: float, default: bool) -> None:
    found = load_recipe(name).device.power_mode(mode)
    assert found is not None
    assert (found.memory_bandwidth, found.default) == (round(bandwidth * GB_S), default)


def test_the_cpu_is_detected() -> None:
    recipe = load_recipe("cpu")
    device = recipe.device
    assert device.memory_bytes is None and device.memory_bandwidth is None
    assert device.compute_capability is None and device.usable_memory_bytes is None
    assert device.power_mode() is None
    with pytest.raises(ConfigError, match="this device has no power modes"):
        device.power_mode("15W")
    assert (recipe.runtime.backend, recipe.runtime.activation_dtype) == ("onnxruntime", "float32")
    assert (recipe.runtime.accuracy_level, recipe.quantization.lm_head_bits) == (4, 8)
    assert recipe.export.context == 2048


@pytest.mark.parametrize("name", JETPACK6)
def test_jetpack6_changes_the_software_only(name: str) -> None:
    old, new = load_recipe(name), load_recipe(name.removesuffix("-jetpack6"))
    assert (old.runtime.version, old.runtime.cuda_version, old.runtime.jetpack) == (
        "10.3",
        "12.6",
        "6.2",
    )
    assert (new.runtime.version, new.runtime.cuda_version, new.runtime.jetpack) == (
        "10.16",
        "13.2",
        "7.2",
    )
    assert (old.quantization, old.export, old.calibration) == (
        new.quantization,
        new.export,
        new.calibration,
    )
    same = {"power_modes": ()}
    assert old.device.model_copy(update=same) == new.device.model_copy(update=same)
    modes = {mode.name for mode in new.device.power_modes} - {
        mode.name for mode in old.device.power_modes
    }
    # AGX Orin 32GB has its Super mode since Jetson Linux 39.2.
    assert modes == ({"MAXN_SUPER"} if "agx-orin-32gb" in name else set())


SOURCE = re.compile(
    r"data sheet|Linux, arch/|\.conf\.common|whitepaper|User Guide|Developer Guide|nvidia\.com"
    r"|nvidia-smi|nvpmodel|tegrastats"
    r"|JetPack [0-9.]+ packages|release|specification|PCWorld|pyproject|unverified|project default"
    r"|measured"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_figure_names_its_source(path: Path) -> None:
    """A line with a figure has a comment that says where it is from, or "unverified"."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        setting, _, comment = line.partition("#")
        key, equals, value = setting.partition("=")
        if not equals or key.strip() in ("extends", "description", "jetpack"):
            continue
        figure = re.search(r"[0-9]", re.sub(r'"[a-z]+[0-9]+"', "", value))  # not "float16"
        if figure:
            assert SOURCE.search(comment), f"{path.name}:{number}: {line}"


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for key in recipe_keys():
        assert f"`{key}`" in text, key
    for unit in (*SIZE_UNITS, *BANDWIDTH_UNITS):
        assert f"`{unit}`" in text, unit


def test_the_example_of_the_documentation_loads(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert examples
    for index, example in enumerate(examples):
        load_recipe(write(tmp_path, f"example-{index}", example))
