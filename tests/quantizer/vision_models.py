"""What the tests of vision-language models share: calls with small settings, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import awq_edge
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer import QuantizedCheckpoint
from awq_edge.quantizer.calibration.pictures import draw
from awq_edge.quantizer.calibration.plan import plan_calibration
from awq_edge.quantizer.calibration.text import CalibrationSet
from awq_edge.quantizer.run_options import Observer
from awq_edge.recipe.recipes import CalibrationDefaults
from tests.arch_configs import IMAGE_TOKEN, model_class

VISION = ("llava", "qwen2_vl")


def drawn(
    model: Path,
    text: Path,
    images: Path | None = None,
    samples: int = 5,
    length: int = 96,
    seed: int = 0,
) -> CalibrationSet:
    defaults = CalibrationDefaults(samples=samples, length=length, seed=seed)
    cpu = torch.device("cpu")
    return plan_calibration(Checkpoint.open(model), defaults, text, images, cpu).draw(model)


def picture_folder(path: Path, seed: int, count: int = 3, side: int | None = None) -> Path:
    path.mkdir()
    random = np.random.default_rng(seed)
    for index in range(count):
        image = draw(random)
        (image if side is None else image.resize((side, side))).save(path / f"{index}.png")
    return path


def image_arguments(ids: torch.Tensor, inputs: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """What the whole model takes, of one sample."""
    found = {key: torch.from_numpy(array) for key, array in (inputs or {}).items()}
    if "image_grid_thw" in found:
        found["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    return {"input_ids": ids, **found}


def loaded_whole(path: Path) -> Any:
    kind = model_class(Checkpoint.open(path).decoder.model_type)
    return kind.from_pretrained(path, dtype=torch.float32).eval()


def quantize(
    model: Path,
    out: Path,
    text: Path,
    *,
    images: Path | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> QuantizedCheckpoint:
    recipe = awq_edge.load_recipe(**{"group_size": 32, "samples": 4, "length": 64, **options})
    run = awq_edge.RunOptions(observer=observer)
    return awq_edge.quantize(model, out, recipe, calibration=text, images=images, run=run)
