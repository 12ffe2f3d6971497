"""`awq-edge recipes`: the list, one recipe, JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from awq_edge.cli.recipes import recipes_app
from awq_edge.errors import ConfigError
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe


def test_the_table_lists_every_recipe() -> None:
    result = CliRunner().invoke(recipes_app, [])
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert [row[0] for row in rows[1:]] == [recipe.name for recipe in list_recipes()]
    nano = next(row for row in rows if row[0] == "jetson-orin-nano-8gb")
    for cell in ("tensorrt", "10.16", "8.7", "GiB", "102", "GB/s", "4-bit", "refined", "4096"):
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
