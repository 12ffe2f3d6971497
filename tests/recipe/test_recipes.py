"""Recipes: quantities are exact, mistakes are named, and every file of the folder loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from awq_edge.cli.recipes import recipes_app
from awq_edge.errors import ConfigError
from awq_edge.recipe import recipes
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe, recipe_folder, recipe_keys
from awq_edge.recipe.units import (
    BANDWIDTH_UNITS,
    SIZE_UNITS,
    format_bandwidth,
    format_size,
    parse_bandwidth,
    parse_size,
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

WHOLE = """
description = "a device of the tests"
[device]
kind = "jetson"
compute_capability = "8.7"
sm_count = 8
memory_bytes = "8 GiB"
memory_bandwidth = "102 GB/s"
unified_memory = true
system_reserved_bytes = "1.5 GiB"
power_modes = [
  { name = "15W", watts = 15, memory_bandwidth = "68 GB/s", default = true },
  { name = "MAXN_SUPER", memory_bandwidth = "102 GB/s" },
]
[runtime]
backend = "tensorrt"
version = "10.16"
cuda_version = "13.2"
jetpack = "7.2"
activation_dtype = "float16"
accuracy_level = 4
[quantization]
method = "awq"
bits = 4
group_size = 128
scheme = "asymmetric"
lm_head_bits = 8
propagate_error = true
format = "auto"
statistics_budget_bytes = "2 GiB"
[export]
context = 4096
prefill_chunk = 512
linear = "plugin"
attention = "plugin"
[calibration]
samples = 128
length = 512
seed = 0
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(folder: Path, old: str, new: str) -> Path:
    """WHOLE with one text replaced."""
    assert WHOLE.count(old) == 1
    return write(folder, "changed", WHOLE.replace(old, new))


def message(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Quantities


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8 GiB", 8 * GiB),
        ("8GiB", 8 * GiB),
        ("1.5 GiB", 3 * GiB // 2),
        ("512 MiB", GiB // 2),
        ("8 GB", 8_000_000_000),
        ("250 MB", 250_000_000),
        ("0 B", 0),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("102.4 GB/s", 102_400_000_000), ("900 MB/s", 900_000_000)]
)
def test_bandwidths(text: str, expected: int) -> None:
    assert parse_bandwidth(text) == expected


@given(st.integers(min_value=0, max_value=2**50))
def test_formatting_loses_nothing(quantity: int) -> None:
    assert parse_size(format_size(quantity)) == quantity
    assert parse_bandwidth(format_bandwidth(quantity)) == quantity


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(sorted(SIZE_UNITS)))
def test_decimals_are_exact_or_refused(whole: int, thousandths: int, unit: str) -> None:
    text = f"{whole}.{thousandths:03d} {unit}"
    scaled = (whole * 1000 + thousandths) * SIZE_UNITS[unit]
    if scaled % 1000:
        with pytest.raises(ValueError, match="whole number"):
            parse_size(text)
    else:
        assert parse_size(text) == scaled // 1000


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_an_error_with_the_units(text: str) -> None:
    try:
        parse_size(text)
    except ValueError as error:
        assert all(unit in str(error) for unit in SIZE_UNITS)
    else:
        assert text.rstrip().endswith(tuple(SIZE_UNITS))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("8", "missing unit"),
        ("8 Gb", "wrong unit"),
        ("8 gib", "wrong unit"),
        ("8 GB/s", "wrong unit"),
        ("-8 GiB", "a number and a unit"),
        ("8  GiB", "a number and a unit"),
        ("eight GiB", "a number and a unit"),
        ("1e3 B", "a number and a unit"),
        ("\u0668 GiB", "a number and a unit"),
        (8, "a number and a unit"),
        (True, "a number and a unit"),
        (None, "a number and a unit"),
    ],
)
def test_wrong_sizes(text: object, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}.*GiB, MiB, GB, MB, B"):
        parse_size(text)


# Loading


def test_a_file_is_loaded_as_written(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "mine", WHOLE))
    assert recipe.name == "mine"
    assert recipe.device.memory_bytes == 8 * GiB
    assert recipe.device.usable_memory_bytes == 13 * GiB // 2
    assert recipe.device.memory_bandwidth == 102 * GB_S
    assert recipe.runtime.workspace_bytes is None
    boot = recipe.device.power_mode()
    assert boot is not None and (boot.name, boot.watts) == ("15W", 15)
    best = recipe.device.power_mode("MAXN_SUPER")
    assert best is not None and best.memory_bandwidth == 102 * GB_S and best.watts is None
    with pytest.raises(ConfigError, match='"7W"; allowed values: 15W, MAXN_SUPER'):
        recipe.device.power_mode("7W")


def test_recipes_are_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "mine", WHOLE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"
    with pytest.raises(ValueError, match="frozen"):
        recipe.quantization.bits = 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # An unknown key: named, with those that exist, and the nearest one.
        (
            "sm_count = 8",
            "sm_counts = 8",
            'unknown key "device.sm_counts"; did you mean "sm_count"? allowed keys: kind, ',
        ),
        (
            "watts = 15",
            "watt = 15",
            'unknown key "device.power_modes[0].watt"; did you mean "watts"? allowed keys: name, ',
        ),
        (
            "[export]",
            "[exports]",
            'unknown key "exports"; did you mean "export"? allowed keys: ext',
        ),
        ('"8.7"', '"8.7"\nextends = "cpu"', 'unknown key "device.extends"'),
        ("description", "name", 'unknown key "name"'),
        # A wrong unit: the key, the value and the units.
        (
            'memory_bytes = "8 GiB"',
            'memory_bytes = "8 Gb"',
            'key "device.memory_bytes" is "8 Gb"; wrong unit; allowed units: GiB, MiB, GB, MB, B',
        ),
        (
            'memory_bytes = "8 GiB"',
            "memory_bytes = 8589934592",
            'key "device.memory_bytes" is 8589934592; must be a number and a unit in quotes; allow',
        ),
        (
            '"68 GB/s"',
            '"68 GB"',
            'key "device.power_modes[0].memory_bandwidth" is "68 GB"; wrong unit; allowed units: '
            "GB/s, MB/s, B/s",
        ),
        (
            "propagate_error = true",
            "propagate_error = 1",
            'key "quantization.propagate_error" is 1',
        ),
        ('"2 GiB"', '"2"', 'key "quantization.statistics_budget_bytes" is "2"; missing unit'),
        # A wrong value: the key, the value and what is allowed.
        ("bits = 4\n", "bits = 5\n", 'key "quantization.bits" is 5; allowed values: 2, 3, 4 or 8'),
        ("bits = 4\n", 'bits = "4"\n', 'key "quantization.bits" is "4"; allowed values: 2, 3, 4'),
        ('"float16"', '"fp16"', "allowed values: 'float16', 'bfloat16' or 'float32'"),
        (
            '"jetson"',
            '"xavier"',
            "key \"device.kind\" is \"xavier\"; allowed values: 'cpu', 'cuda', 'jetson",
        ),
        ("sm_count = 8", 'sm_count = "8"', 'key "device.sm_count" is "8"; must be an integer'),
        ("sm_count = 8", "sm_count = 8.0", 'key "device.sm_count" is 8.0; must be an integer'),
        ("sm_count = 8", "sm_count = true", 'key "device.sm_count" is true; must be an integer'),
        ("sm_count = 8", "sm_count = 0", 'key "device.sm_count" is 0; must be greater than 0'),
        ("level = 4", "level = 5", "must be less than or equal to 4"),
        ('version = "10.16"', "version = 10.16", '"runtime.version" is 10.16; must be a text in q'),
        ('version = "10.16"', 'version = "v10"', 'must be numbers and dots, such as "10.16"'),
        ('"8.7"', '"sm_87"', 'must be MAJOR.MINOR, such as "8.7"'),
        ("memory = true", 'memory = "yes"', "must be true or false"),
        ("samples = 128\n", "", 'missing key "calibration.samples"'),
        # Rules between keys.
        ("sm_count = 8\n", "", 'device: kind "jetson" needs a figure for sm_count'),
        ('bytes = "8 GiB"', 'bytes = "detect"', "needs a figure for memory_bytes"),
        ('"1.5 GiB"', '"8 GiB"', "leaves nothing of memory_bytes (8 GiB)"),
        (", default = true", "", "exactly one of 15W, MAXN_SUPER must have default = true"),
        ('"MAXN_SUPER"', '"15W"', "a name occurs twice in 15W, 15W"),
        ('"68 GB/s"', '"103 GB/s"', "15W has 103 GB/s, more than memory_bandwidth (102 GB/s)"),
        ('cuda_version = "13.2"\n', "", 'runtime: backend "tensorrt" needs cuda_version'),
        ('jetpack = "7.2"\n', "", 'runtime.jetpack belongs to recipes of kind "jetson"'),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = changed(tmp_path, old, new)
    text = message(path)
    assert text.startswith(f"{path}: ")
    assert expected in text


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    text = WHOLE.replace("bits = 4\n", "bits = 5\n", 1).replace("samples = 128", "samples = 0")
    text = message(write(tmp_path, "two", text))
    assert '"quantization.bits"' in text and '"calibration.samples"' in text


def test_a_table_that_is_none(tmp_path: Path) -> None:
    text = 'export = 3\nextends = "cpu"\ndescription = "x"'
    assert "must be a table with the keys context, prefill_chunk" in message(
        write(tmp_path, "flat", text)
    )


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    assert "not valid TOML" in message(write(tmp_path, "broken", "[device"))
    assert "line 2" in message(write(tmp_path, "broken", "[device]\nkind = cpu"))
    latin1 = tmp_path / "latin1.toml"
    latin1.write_bytes(b'description = "\xe9"')
    assert "is not UTF-8" in message(latin1)
    assert "no recipe file at" in message(tmp_path / "absent.toml")


def test_unknown_names_list_the_nearest() -> None:
    text = message("jetson-orin-nano-8g")
    assert 'unknown recipe "jetson-orin-nano-8g"; did you mean jetson-orin-nano-8gb, ' in text
    assert "`awq-edge recipes`" in text
    assert "did you mean" not in message("zzzz")
    assert "must end in .toml" in message("../recipes/cpu")


# extends


def test_tables_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    write(tmp_path, "base", WHOLE)
    child = write(
        tmp_path,
        "child",
        """
        extends = "base"
        [device]
        power_modes = [{ name = "7W", watts = 7, memory_bandwidth = "68 GB/s", default = true }]
        [quantization]
        bits = 3
        """,
    )
    recipe, base = load_recipe(child), load_recipe(tmp_path / "base.toml")
    assert recipe.name == "child"
    assert recipe.quantization == base.quantization.model_copy(update={"bits": 3})
    assert [mode.name for mode in recipe.device.power_modes] == ["7W"]
    assert recipe.device.sm_count == base.device.sm_count
    assert recipe.runtime == base.runtime and recipe.export == base.export


def test_a_recipe_of_ones_own_extends_a_packaged_one_of_the_same_name(tmp_path: Path) -> None:
    path = write(tmp_path, "cpu", 'extends = "cpu"\n[export]\ncontext = 77')
    assert load_recipe(path).export.context == 77


def test_extends_may_be_a_path_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", "base", WHOLE)
    path = write(tmp_path, "child", 'extends = "parts/base.toml"')
    assert load_recipe(path).device == load_recipe(tmp_path / "parts" / "base.toml").device


def test_a_mistake_is_reported_in_the_file_that_makes_it(tmp_path: Path) -> None:
    base = write(tmp_path, "base", WHOLE.replace("bits = 4\n", "bits = 5\n", 1))
    child = write(tmp_path, "child", 'extends = "base"\n[export]\ncontext = 1')
    assert message(child).startswith(f"{base}: ")


def test_circles_and_dead_ends(tmp_path: Path) -> None:
    first = write(tmp_path, "first", 'extends = "second"')
    write(tmp_path, "second", 'extends = "third"')
    write(tmp_path, "third", 'extends = "first"')
    assert "extends goes in a circle: first -> second -> third -> first" in message(first)
    assert "in a circle: self -> self" in message(
        write(tmp_path, "self", 'extends = "./self.toml"')
    )
    lost = write(tmp_path, "lost", 'extends = "cpi"')
    assert message(lost).startswith(f'{lost}: extends: unknown recipe "cpi"; did you mean cpu')
    assert 'key "extends" is 3; must be the name' in message(write(tmp_path, "n", "extends = 3"))


def test_extends_has_a_depth(tmp_path: Path) -> None:
    write(tmp_path, "r0", WHOLE)
    for depth in range(1, 11):
        write(tmp_path, f"r{depth}", f'extends = "r{depth - 1}"')
    assert load_recipe(tmp_path / "r8.toml").device.sm_count == 8
    assert "more than 8 recipes deep" in message(tmp_path / "r9.toml")


# Overrides


def test_overrides_replace_keys_and_leave_the_recipe() -> None:
    recipe = load_recipe("jetson-orin-nano-8gb")
    other = recipe.overridden(
        {
            "quantization.bits": 3,
            "export.context": 100,
            "device.system_reserved_bytes": "1 GiB",
            "quantization.method": None,
        }
    )
    assert (other.quantization.bits, other.export.context) == (3, 100)
    assert other.device.system_reserved_bytes == GiB
    assert other.quantization.method == recipe.quantization.method
    assert recipe.quantization.bits == 4
    assert other.device.power_modes == recipe.device.power_modes
    assert recipe.overridden({}) == recipe


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("quantization.bits", 5, 'key "quantization.bits" is 5; allowed values: 2, 3, 4 or 8'),
        ("quantization.bit", 4, 'did you mean "quantization.bits"? allowed keys: quantization.met'),
        ("device.memory_bytes", "8 Gb", "wrong unit; allowed units: GiB"),
        ("bits", 4, 'unknown key "bits"; did you mean "quantization.bits"? allowed keys: descri'),
        ("quantization", {}, 'unknown key "quantization"'),
        ("extends", "cpu", 'unknown key "extends"'),
        ("name", "x", 'unknown key "name"'),
    ],
)
def test_wrong_overrides_are_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("rtx-4090").overridden({key: value})
    assert str(caught.value).startswith("override of recipe rtx-4090: ")
    assert expected in str(caught.value)


# The recipes that come with the package


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


# The command line


def test_the_table_lists_every_recipe() -> None:
    result = CliRunner().invoke(recipes_app, [])
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert [row[0] for row in rows[1:]] == [recipe.name for recipe in list_recipes()]
    nano = next(row for row in rows if row[0] == "jetson-orin-nano-8gb")
    for cell in ("tensorrt", "10.16", "8.7", "GiB", "102", "GB/s", "4-bit", "awq", "4096"):
        assert cell in nano


def test_show_prints_units_and_modes() -> None:
    result = CliRunner().invoke(recipes_app, ["show", "jetson-orin-nano-8gb"])
    assert result.exit_code == 0
    for text in (
        "memory_bytes            8 GiB",
        "workspace_bytes         512 MiB",
        "unified_memory          yes",
        "power mode 25W          25 W      102 GB/s  (default)",
        "power mode MAXN_SUPER   no limit  102 GB/s",
        "context                 4096 tokens",
    ):
        assert text in result.output


def test_show_writes_json(tmp_path: Path) -> None:
    expected = load_recipe("rtx-5060-laptop-8gb")
    result = CliRunner().invoke(recipes_app, ["show", expected.name, "--json", "-"])
    assert Recipe.model_validate_json(result.output) == expected
    target = tmp_path / "recipe.json"
    result = CliRunner().invoke(recipes_app, ["show", expected.name, "--json", str(target)])
    assert (result.exit_code, result.output) == (0, "")
    assert Recipe.model_validate_json(target.read_text(encoding="utf-8")) == expected
    result = CliRunner().invoke(
        recipes_app, ["show", expected.name, "--json", str(tmp_path / "absent" / "recipe.json")]
    )
    assert isinstance(result.exception, ConfigError)


def test_show_passes_errors_on() -> None:
    result = CliRunner().invoke(recipes_app, ["show", "no-such-device"])
    assert isinstance(result.exception, ConfigError)


def test_importing_the_command_imports_neither_rich_nor_pydantic() -> None:
    code = (
        "import sys, awq_edge.cli.recipes\n"
        "print([m for m in ('rich', 'pydantic', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert result.stdout.strip() == "[]"


def test_the_public_names() -> None:
    assert all(hasattr(recipes, name) for name in recipes.__all__)
