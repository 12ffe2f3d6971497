"""Recipes: quantities are exact, mistakes are named, and every file of the folder loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.errors import ConfigError
from awq_edge.flags import FlagField, flag_fields
from awq_edge.recipe import recipes
from awq_edge.recipe.files import recipe_folder
from awq_edge.recipe.recipes import Recipe, load_recipe

GiB = 2**30
GB_S = 10**9
FILES = sorted(recipe_folder().glob("*.toml"))
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
effort = "fast"
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
    assert str(caught.value).startswith("recipe rtx-4090: ")
    assert expected in str(caught.value)


_NO_LEVEL = "must be less than or equal to 4"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bits": 5}, "--bits 5: allowed values: 2, 3, 4 or 8"),
        ({"group_size": 48}, "--group-size 48: allowed values: 32, 64 or 128"),
        ({"scheme": "odd"}, "--scheme odd: allowed values: 'asymmetric' or 'symmetric'"),
        ({"context": 0}, "--context 0: must be greater than 0"),
        ({"length": -1}, "--length -1: must be greater than 0"),
        ({"accuracy_level": 9, "bits": 4}, f"--accuracy-level 9: {_NO_LEVEL}"),
        ({"bits": 5, "seed": -1}, "--bits 5: allowed values: 2, 3, 4 or 8; --seed -1: must be gr"),
        ({"runtime": "cuda"}, '--runtime cuda: backend "cuda" needs cuda_version; recipes of GPUs'),
    ],
)
def test_options_that_are_refused_are_named_as_typed(
    options: dict[str, object], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("cpu", **options)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("field", list(flag_fields(Recipe)), ids=lambda field: field.name)
def test_every_option_is_refused_by_its_own_name(field: FlagField) -> None:
    wrong = {int: -(10**9), float: -1e9, str: "no such", bool: 3}[field.type]
    with pytest.raises(ConfigError) as caught:
        load_recipe("cpu", **{field.name: wrong})
    if field.name != "runtime":  # whose words are the registry's
        assert str(caught.value).startswith(f"{field.typed(wrong)}: ")
    assert field.key not in str(caught.value)


def test_the_public_names() -> None:
    assert all(hasattr(recipes, name) for name in recipes.__all__)
