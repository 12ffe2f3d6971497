"""What clients of the OpenAI API send on a second turn, as tests/serve/client_turns/ has it.

    python scripts/record_clients.py OUT [--node DIR]

Needs openai, litellm, langchain-openai and instructor, of any version; --node: a folder where npm
has installed ai, @ai-sdk/openai and @ai-sdk/openai-compatible. A server in this process gives each
client a first answer of each kind, in this project's words, and notes the request behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

QUESTION = {"role": "user", "content": "What is the capital of France?"}
NEXT = "And of Italy?"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {"content": "Paris.", "refusal": None},
    "json": {"content": '{"city": "Paris"}', "refusal": None},
    "reasoning": {"content": "Paris.", "reasoning_content": "France, so", "refusal": None},
    "refused": {"content": None, "refusal": "I cannot say."},
    "cut": {"content": "The capital of", "refusal": None},
}
_NODE = """
import { generateText, generateObject, jsonSchema } from 'ai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { createOpenAI } from '@ai-sdk/openai';
const [base, provider, kind, question, next, schema] = process.argv.slice(2);
const model = provider === 'openai'
  ? createOpenAI({ baseURL: base, apiKey: 'none' }).chat('tiny')
  : createOpenAICompatible({ name: 'local', baseURL: base, apiKey: 'none' })('tiny');
const messages = [{ role: 'user', content: question }];
if (kind === 'json') {
  const first = await generateObject({
    model, messages, maxRetries: 0, schema: jsonSchema(JSON.parse(schema)) });
  messages.push({ role: 'assistant', content: JSON.stringify(first.object) });
} else {
  const first = await generateText({ model, messages, maxRetries: 0 });
  messages.push(...first.response.messages);
}
messages.push({ role: 'user', content: next });
await generateText({ model, messages, maxRetries: 0 });
"""


class Recorder:
    """A server that answers each request with `kind` and keeps its body."""

    def __init__(self) -> None:
        self.kind = "plain"
        self.bodies: list[dict[str, Any]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                recorder.bodies.append(json.loads(self.rfile.read(size)))
                body = json.dumps(recorder.answer()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def answer(self) -> dict[str, Any]:
        reason = "length" if self.kind == "cut" else "stop"
        message = {"role": "assistant", **MESSAGES[self.kind]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny"}
        return {**head, "system_fingerprint": "fp_1", "choices": [choice], "usage": usage}


Client = Callable[[str, str], None]  # the address and the kind; makes both requests


def openai_object(address: str, kind: str) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="none")
    create: Any = client.chat.completions.create
    extra = {"response_format": FORMAT} if kind == "json" else {}
    first = create(model="tiny", messages=[QUESTION], **extra)
    following = {"role": "user", "content": NEXT}
    create(model="tiny", messages=[QUESTION, first.choices[0].message, following])


def openai_dump(address: str, kind: str) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="none")
    create: Any = client.chat.completions.create
    message = create(model="tiny", messages=[QUESTION]).choices[0].message.model_dump()
    create(model="tiny", messages=[QUESTION, message, {"role": "user", "content": NEXT}])


def openai_parse(address: str, kind: str) -> None:
    import openai
    import pydantic

    class City(pydantic.BaseModel):
        city: str

    client = openai.OpenAI(base_url=address, api_key="none")
    parse: Any = client.chat.completions.parse
    extra = {"response_format": City} if kind == "json" else {}
    first = parse(model="tiny", messages=[QUESTION], **extra).choices[0].message
    following = {"role": "user", "content": NEXT}
    client.chat.completions.create(model="tiny", messages=[QUESTION, first, following])  # type: ignore[list-item]


def litellm_object(address: str, kind: str) -> None:
    _litellm(address, kind, dump=False)


def litellm_dump(address: str, kind: str) -> None:
    _litellm(address, kind, dump=True)


def _litellm(address: str, kind: str, *, dump: bool) -> None:
    import litellm

    settings = {"model": "openai/tiny", "api_base": address, "api_key": "none", "max_tokens": 50}
    extra = {"response_format": FORMAT} if kind == "json" else {}
    message = litellm.completion(messages=[QUESTION], **settings, **extra).choices[0].message
    answer = message.model_dump() if dump else message
    litellm.completion(messages=[QUESTION, answer, {"role": "user", "content": NEXT}], **settings)


def langchain(address: str, kind: str) -> None:
    from langchain_openai import ChatOpenAI

    model: Any = ChatOpenAI(model="tiny", base_url=address, api_key="none")
    asked = model.bind(response_format=FORMAT) if kind == "json" else model
    messages: list[Any] = [QUESTION]
    # A refusal of a structured answer is an exception there; nothing is sent back.
    messages.append(asked.invoke(messages))
    model.invoke([*messages, {"role": "user", "content": NEXT}])


def instructor_json(address: str, kind: str) -> None:
    _instructor(address, "JSON")


def instructor_schema(address: str, kind: str) -> None:
    _instructor(address, "JSON_SCHEMA")


def instructor_markdown(address: str, kind: str) -> None:
    _instructor(address, "MD_JSON")


def _instructor(address: str, mode: str) -> None:
    """It sends an answer back where it does not fit the class: every one of these."""
    import instructor
    import openai
    import pydantic

    class Trip(pydantic.BaseModel):
        nights: int

    client = instructor.from_openai(
        openai.OpenAI(base_url=address, api_key="none"), mode=getattr(instructor.Mode, mode)
    )
    create: Any = client.chat.completions.create
    create(model="tiny", messages=[QUESTION], response_model=Trip, max_retries=1)


def ai_sdk(node: Path, provider: str) -> Client:
    script = node / "turns.mjs"
    script.write_text(_NODE, encoding="utf-8")

    def turns(address: str, kind: str) -> None:
        words = [QUESTION["content"], NEXT, json.dumps(SCHEMA)]
        subprocess.run(["node", str(script), address, provider, kind, *words], cwd=node, check=True)

    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--node", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    clients: dict[str, tuple[str, Client]] = {
        "openai": ("openai", openai_object),
        "openai-dump": ("openai", openai_dump),
        "openai-parse": ("openai", openai_parse),
        "litellm": ("litellm", litellm_object),
        "litellm-dump": ("litellm", litellm_dump),
        "langchain": ("langchain-openai", langchain),
        "instructor-json": ("instructor", instructor_json),
        "instructor-schema": ("instructor", instructor_schema),
        "instructor-markdown": ("instructor", instructor_markdown),
    }
    if arguments.node is not None:
        for provider in ("openai", "openai-compatible"):
            clients[f"ai-sdk-{provider}"] = ("ai", ai_sdk(arguments.node, provider))
    recorder = Recorder()
    for name, (package, client) in clients.items():
        turns = {}
        for kind in MESSAGES:
            recorder.kind, recorder.bodies = kind, []
            with contextlib.suppress(Exception):  # some clients keep a refusal to themselves
                client(recorder.address, kind)
            if len(recorder.bodies) > 1:
                turns[kind] = recorder.bodies[-1]
        found = {"package": package, "version": _version(package, arguments.node), "turns": turns}
        text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
        (arguments.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, found["version"], *turns)


def _version(package: str, node: Path | None) -> str:
    if package == "ai" and node is not None:
        manifest = node / "node_modules" / "ai" / "package.json"
        return str(json.loads(manifest.read_text(encoding="utf-8"))["version"])
    return importlib.metadata.version(package)


if __name__ == "__main__":
    main()
