"""`--propagate-error` and the recipe's key mean the same, and are told apart in the weights."""

from __future__ import annotations

from pathlib import Path

from awq_edge.recipe.recipes import load_recipe
from tests.tiny_models import TEXT

from .conftest import Command


def test_the_flag_and_the_recipes_key(
    awq_edge_command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    # refined has both streams, whatever the key says
    method = ("--method", "awq", "--group-size", 32)
    small = (*method, "--calibration", text, "--samples", 2, "--length", 64)

    def weights(name: str, *flags: object) -> bytes:
        out = tmp_path / name
        outcome = awq_edge_command("quantize", tiny_llama, "--out", out, *small, *flags)
        assert outcome.code == 0, outcome.err
        return (out / "model.safetensors").read_bytes()

    own = {}
    for value in ("true", "false"):
        recipe = tmp_path / f"{value}.toml"
        recipe.write_text(
            f'extends = "cpu"\ndescription = "x"\n[quantization]\npropagate_error = {value}\n'
        )
        own[value] = weights(f"recipe-{value}", "--recipe", recipe)
    assert own["true"] != own["false"]
    assert weights("with", "--propagate-error") == own["true"]
    assert weights("without", "--no-propagate-error") == own["false"]
    default = load_recipe("cpu").quantization.propagate_error
    assert weights("default") == own["true" if default else "false"]
