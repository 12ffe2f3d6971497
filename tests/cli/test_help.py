"""`--help`: every option of a command, once, in groups."""

from __future__ import annotations

import re

import pytest

from awq_edge.flags import FlagField
from awq_edge.recipe.recipes import command_fields, load_recipe

from .conftest import Command

# Names that scripts of users have, of all commands with options made of fields, and of `bench`.
OPTIONS = {
    "quantize": """
        allow-unknown-keys bits bits-per-weight calibration context device effort eval-text
        executor fit format group-size images json length lm-head-bits method no-propagate-error
        no-resume out overwrite propagate-error ray-address ray-blocks ray-gpus recipe resume
        samples scheme seed
    """,
    "export": """
        accuracy-level activation-dtype allow-unknown-keys attention bits bits-per-weight
        calibration context device effort executor fit gguf group-size length linear lm-head-bits
        method no-propagate-error no-resume no-verify out overwrite propagate-error ray-address
        ray-blocks ray-gpus recipe resume runtime samples sampling scheme seed verify
    """,
    "fit": """
        activation-dtype all allow-unknown-keys bits context group-size json kv-dtype
        lm-head-bits recipe runtime scheme
    """,
    "run": """
        chat chat-template chat-template-kwargs context ignore-eos json max-new-tokens min-p
        prompt prompt-file raw repetition-penalty sample seed stop temperature threads top-k
        top-p
    """,
    "chat": """
        chat-template chat-template-kwargs context max-new-tokens min-p repetition-penalty seed
        stop system temperature threads top-k top-p
    """,
    "serve": """
        api-key chat-template chat-template-kwargs context host max-body-bytes max-new-tokens
        max-queue min-p model-name port repetition-penalty shutdown-timeout temperature threads
        top-k top-p
    """,
    "bench": """
        context csv generated html json prompt repeats sample-interval seed threads warmup
    """,
}
GROUPS = {
    "quantize": ["What it does to the model", "Where it runs", "Calibration", "Output"],
    "export": ["What it does to the model", "Where it runs", "Calibration", "Sampling", "Output"],
    "fit": ["What it does to the model", "Where it runs", "Output"],
    "run": ["Options", "Where it runs", "Sampling", "Output"],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_there_once(command: str, awq_edge_command: Command) -> None:
    out = awq_edge_command(command, "--help").out
    shown = re.findall(r"^  (--[a-z-]+)(?: / (--[a-z-]+))?", out, re.MULTILINE)
    names = sorted(name for pair in shown for name in pair if name)
    assert names == sorted(["--help", *(f"--{name}" for name in OPTIONS[command].split())])


@pytest.mark.parametrize("command", GROUPS)
def test_options_stand_in_groups(command: str, awq_edge_command: Command) -> None:
    out = awq_edge_command(command, "--help").out
    headings = re.findall(r"^([A-Z][a-z ]+):$", out, re.MULTILINE)
    assert headings == ["Arguments", *GROUPS[command], "Help"]


@pytest.mark.parametrize("command", ["quantize", "export", "fit"])
def test_an_option_says_what_its_field_allows(command: str, awq_edge_command: Command) -> None:
    words = " ".join(awq_edge_command(command, "--help").out.split())
    for field in command_fields(command):
        assert f"{field.help} [default: the recipe's]".replace("- ", "-") in words.replace(
            "- ", "-"
        )
    assert "32, 64, 128" in words and "asymmetric, symmetric" in words


# Options without a value in any recipe here, and one that they take.
BUDGETS = {"fit": "cuda", "bits_per_weight": 4.5}
VALUED = [field for field in command_fields("export") if field.name not in BUDGETS]


@pytest.mark.parametrize("name", BUDGETS)
def test_an_option_that_no_recipe_has_a_value_for(name: str) -> None:
    key, value = f"quantization.{name}", BUDGETS[name]
    asked = load_recipe("cpu", **{name: value})
    assert asked.asked == {key: value} and getattr(asked.quantization, name) == value
    assert getattr(load_recipe("cpu", **{name: None}).quantization, name) is None


@pytest.mark.parametrize("field", VALUED, ids=lambda field: field.name)
def test_an_option_is_what_load_recipe_takes(field: FlagField) -> None:
    """One name for both; a recipe's own value, asked for, is remembered and nothing else."""
    section, key = field.key.split(".")
    recipe = load_recipe("cpu")
    value = getattr(getattr(recipe, section), key)
    assert isinstance(value, field.type)
    asked = load_recipe("cpu", **{field.name: value})
    assert asked.asked == {field.key: value} and asked.model_dump() == recipe.model_dump()


def test_an_option_that_there_is_not(awq_edge_command: Command) -> None:
    outcome = awq_edge_command("quantize", "demo", "--out", "x", "--group-sice", "32")
    assert outcome.code == 2 and "--group-size" in outcome.err
    outcome = awq_edge_command("quantise", "demo")
    assert outcome.code == 2 and "Did you mean 'quantize'" in outcome.err
