"""The one model that is served, with its queue, its worker and its limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from awq_edge.artifacts.sampling_keys import SamplingKeys
from awq_edge.runtime.model import Model
from awq_edge.runtime.template_process import warm_up
from awq_edge.serve.grammar import Vocabulary, grammar_of
from awq_edge.serve.job import Job
from awq_edge.serve.limits import Limits
from awq_edge.serve.metrics import Metrics
from awq_edge.serve.scheduler import Scheduler
from awq_edge.serve.schema import ChatRequest, CompletionRequest
from awq_edge.serve.task import Task, TaskSettings, chat_task, completion_task
from awq_edge.serve.worker import Worker

# Jobs in a row that a defect ended, after which /health says that something is wrong.
_CRASHES = 3


class Service:
    """Everything behind the HTTP routes. Start its scheduler, and stop it before the model is
    closed."""

    def __init__(
        self,
        model: Model,
        *,
        limits: Limits,
        api_key: str | None = None,
        model_name: str | None = None,
        local: bool = True,
        sampling: SamplingKeys | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ModelError for a bundle whose own sampling keys cannot be.

        model_name: the name that clients use; default: the manifest's.
        local: only programs of this machine can connect.
        sampling: keys in place of the bundle's, each by itself.
        variables: of the chat template, beside the messages.
        """
        self.model = model
        self.limits = limits
        self.model_name = model_name or model.manifest.model_name
        self.fingerprint = "fp_" + hashlib.sha256(repr(model.manifest).encode()).hexdigest()[:12]
        keys = model.sampling if sampling is None else sampling.over(model.sampling)
        self._settings = TaskSettings(limits, keys, grammar_of, dict(variables or {}))
        if model.chat_template is not None:
            warm_up()
        self._local = local
        self._key = None if api_key is None else api_key.encode("utf-8")
        self.metrics = Metrics(lambda: self.scheduler.state(), model.session.memory)
        worker = Worker(model, Vocabulary(model), self.metrics)
        self.scheduler: Scheduler[Job] = Scheduler(worker, limits.max_queue)

    def authorized(self, header: str | None) -> bool:
        """True if an Authorization header has the key. Compared in constant time."""
        if self._key is None:
            return True
        scheme, _, given = (header or "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key)
        return same and scheme.lower() == "bearer"

    def host_allowed(self, header: str | None) -> bool:
        """True if a Host header may come from a client that means this server.

        header: None where it is missing, which only HTTP/1.0 may do and no browser does.

        Without a key, a web page whose name was made to point at this machine could use the model
        from its reader's browser. Such a page sends its own name; addresses and localhost are ours.
        """
        if self._key is not None or not self._local or header is None:
            return True
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:  # "[" without its end
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or name.endswith(".localhost")
        return True

    def completion_task(self, request: CompletionRequest) -> Task:
        """The task of a request. Raises ApiError."""
        return completion_task(self.model, request, self._settings)

    def chat_task(self, request: ChatRequest) -> Task:
        """The task of a request. Raises ApiError."""
        return chat_task(self.model, request, self._settings)

    def health(self) -> tuple[bool, dict[str, object]]:
        """True if requests will be served, and the body of /health."""
        state = self.scheduler.state()
        status = "ok"
        if state.closed:
            status = "shutting_down"
        elif state.crashes_in_row >= _CRASHES:
            status = "failing"
        body = {
            "status": status,
            "model": self.model_name,
            "queued": state.queued,
            "running": state.running,
        }
        return status == "ok", body
