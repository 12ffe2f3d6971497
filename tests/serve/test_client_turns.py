"""What clients send back of a first answer is taken. Recorded by scripts/record_clients.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the [serve] extra")

from awq_edge.runtime.model import Model, load
from awq_edge.serve.api_error import ApiError
from awq_edge.serve.limits import Limits
from awq_edge.serve.schema import ChatRequest, parse
from awq_edge.serve.service import Service

FOLDER = Path(__file__).parent / "client_turns"
KINDS = ("plain", "json", "reasoning", "refused", "cut")
RECORDED = {path.stem: json.loads(path.read_text())["turns"] for path in FOLDER.glob("*.json")}
SAID = {
    "plain": ("Paris.",),
    "json": ('{"city": "Paris"}', '{"city":"Paris"}'),
    "reasoning": ("Paris.",),
    "refused": ("I cannot say.", ""),  # some clients keep a refusal to themselves
    "cut": ("The capital of",),
}


@pytest.fixture(scope="module")
def model(tiny_chat_bundle: Path) -> Iterator[Model]:
    with load(tiny_chat_bundle, threads=1) as opened:
        yield opened


def test_every_client_and_kind_is_there() -> None:
    assert len(RECORDED) == 11
    for name, turns in RECORDED.items():
        # instructor sends an answer back that does not fit; one that was cut it does not.
        least = KINDS[:4] if name.startswith(("instructor", "openai-parse")) else KINDS
        assert set(least) <= set(turns), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("client", sorted(RECORDED))
def test_a_second_turn_is_taken(model: Model, client: str, kind: str) -> None:
    body: dict[str, Any] | None = RECORDED[client].get(kind)
    if body is None:
        pytest.skip(reason=f"{client} sends nothing back of such an answer")
    request = parse(json.dumps(body).encode(), ChatRequest)
    answers = [m.plain() for m in request.messages if m.role == "assistant"]
    assert answers and answers[-1]["content"] in SAID[kind]
    service = Service(model, limits=Limits())
    try:
        task = service.chat_task(request)
    except ApiError as error:  # instructor's words are more than a tiny model's context
        assert error.code == "context_length_exceeded" and client.startswith("instructor")
    else:
        prompt = model.tokenizer.decode(task.prompt_ids)
        assert answers[-1]["content"] in prompt
