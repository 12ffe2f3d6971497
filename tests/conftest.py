"""Fixtures of all tests."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny_models import save_tiny_llama

# CI repeats the same cases for the same code; elsewhere every run looks at new ones. No example
# has a time limit: other tests run at the same time.
settings.register_profile("any", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "any")


@pytest.fixture(autouse=True)
def _torch_threads() -> Iterator[None]:
    """A test that sets torch's threads, as `--threads` does, sets them for itself alone."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    yield
    if torch is not None:
        torch.set_num_threads(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the work, files with slow tests come first: one that began last
    would be waited for. In one process the order stays."""
    if not hasattr(config, "workerinput"):
        return
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


_STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260k"


@pytest.fixture(scope="session")
def stories_or_none() -> Path | None:
    """The public stories260k model, where a folder `shared` lies beside the repository."""
    return _STORIES if _STORIES.is_dir() else None


@pytest.fixture(scope="session")
def stories(stories_or_none: Path | None) -> Path:
    """The public stories260k model; tests that need it are skipped where it is not there."""
    if stories_or_none is None:
        pytest.skip(reason=f"{_STORIES} is not there")
    return stories_or_none


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: tiny random Llama with a tokenizer."""
    pytest.importorskip("transformers", reason="needs the [host] extra")
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` unquantized, float32, accuracy level 0; prefill chunks of 32 tokens."""
    return _exported(tiny_llama, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_bundle`, of a model with a chat template."""
    pytest.importorskip("transformers", reason="needs the [host] extra")
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-chat", chat=True)
    return _exported(model, tmp_path_factory.mktemp("bundle") / "tiny-chat")


def _exported(model: Path, out: Path) -> Path:
    import awq_edge

    recipe = awq_edge.load_recipe("cpu").overridden({"export.prefill_chunk": 32})
    recipe = recipe.asking(method="none", accuracy_level=0, activation_dtype="float32")
    return awq_edge.export(model, out, recipe).path
