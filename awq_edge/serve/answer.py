"""From an accepted task to the response: the bridge between the event loop and the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import Response
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from awq_edge.runtime.generation import Generation
from awq_edge.serve.api_error import as_api_error
from awq_edge.serve.job import AnswerDelta, Event, Failed, Finished, Job, ScoredToken
from awq_edge.serve.responses import Answer, to_json
from awq_edge.serve.service import Service
from awq_edge.serve.task import Task

# The status, of nginx's, that is counted where the client went away. Nobody receives it.
CLIENT_GONE = 499
_DONE = "[DONE]"


async def respond(service: Service, request: Request, task: Task) -> Response:
    """Queue the task and give its answer, whole or as a stream.

    A client that goes away cancels its job, waiting or running. Raises ApiError where the queue is
    full.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(event: Event) -> None:
        # An answer that comes whole has its deltas' text already; their tokens' scores it has not.
        if task.stream or not isinstance(event, AnswerDelta) or event.tokens:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop is closed: the server has ended
                job.cancelled.set()

    # Clients take turns in the queue; a client is the address that the connection comes from.
    client = request.client.host if request.client is not None else "local"
    job = Job(client, task, deliver)
    answer = Answer(
        task.api, service.model_name, service.fingerprint, task.top_logprobs is not None
    )
    try:
        service.scheduler.submit(job)
    except Exception as error:
        raise as_api_error(error) from None
    if task.stream:
        return _Stream(_events(events, answer, task), service, job)
    try:
        return await _whole(request, events, answer)
    finally:
        service.scheduler.cancel(job)  # nothing, where it has ended


async def _whole(request: Request, events: asyncio.Queue[Event], answer: Answer) -> Response:
    """The answer at its end, or an empty response as soon as the client has gone."""
    collected = asyncio.create_task(_collect(events))
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({collected, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            return Response(status_code=CLIENT_GONE)
        generation, tokens = collected.result()
    finally:
        for waiting in (collected, gone):
            waiting.cancel()
    return Response(to_json(answer.whole(generation, tokens)), media_type="application/json")


async def _collect(events: asyncio.Queue[Event]) -> tuple[Generation, list[ScoredToken]]:
    """The generation and its scored tokens. Raises ApiError where the worker failed."""
    tokens: list[ScoredToken] = []
    while True:
        event = await events.get()
        if isinstance(event, Failed):
            raise as_api_error(event.error)
        tokens += event.tokens
        if isinstance(event, Finished):
            return event.generation, tokens


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    events: asyncio.Queue[Event], answer: Answer, task: Task
) -> AsyncIterator[ServerSentEvent]:
    """The data of a stream. An error after its beginning is the stream's last event."""

    def event(body: object) -> ServerSentEvent:
        return ServerSentEvent(to_json(body))

    if answer.api == "chat":
        yield event(answer.chunk(None, first=True))
    while True:
        item = await events.get()
        if isinstance(item, AnswerDelta):
            yield event(answer.chunk(item.text, item.tokens, thought=item.thought))
        elif isinstance(item, Failed):
            yield event(as_api_error(item.error).body())
            return
        else:
            generation = item.generation
            yield event(answer.chunk(None, item.tokens, generation.finish_reason))
            if task.include_usage:
                yield event(answer.usage_chunk(generation))
            yield ServerSentEvent(_DONE)
            return


class _Stream(EventSourceResponse):
    """Server-sent events; however the response ends, its job ends too."""

    def __init__(self, content: AsyncIterator[ServerSentEvent], service: Service, job: Job) -> None:
        super().__init__(content, send_timeout=service.limits.send_seconds, sep="\n")
        self._service = service
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.scheduler.cancel(self._job)
