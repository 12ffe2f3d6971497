"""The model that lm-evaluation-harness sees. Needs the [eval] extra.

The harness speaks in texts; a `TaskModel` in token ids. This adapter tokenizes, cuts windows,
truncates, finds stop strings, and translates the generation settings. Where the harness leaves a
choice to the model, the choice is that of its own adapter for Hugging Face models, so that numbers
compare with published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from awq_edge.errors import ConfigError, ModelError, ResourceError
from awq_edge.evaluate.task_model import Continuation, Likelihood, TaskModel
from awq_edge.runtime.chat_template import ChatTemplate, load_chat_template
from awq_edge.runtime.generation import Request
from awq_edge.runtime.sampling import Sampling

TaskProgress = Callable[[int, int, str], None]  # (done, total, of what)

# Tokens of an answer where the task does not say; the harness's own default.
_MAX_NEW_TOKENS = 256
# Generation settings that are not Sampling's, and their values that change nothing.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "early_stopping": None}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval carries no types
    """A `TaskModel` as the harness's LM.

    truncated: requests so far whose beginning was cut off to fit the context.
    """

    def __init__(self, model: TaskModel, *, seed: int, progress: TaskProgress | None) -> None:
        """seed: of drawn answers; each request has its own, made from it."""
        super().__init__()
        self._model = model
        self._seed = seed
        self._progress = progress
        self._template: ChatTemplate | None = None
        self.truncated = 0

    @property
    def max_length(self) -> int:
        return self._model.context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises ModelError when the tokenizer names none."""
        tokenizer = self._model.tokenizer
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{tokenizer.directory}: tokenizer_config.json names neither bos_token nor "
                "eos_token, which tasks need before a text that nothing precedes; add one"
            )
        return tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that nothing precedes: BOS, or EOS where there is none."""
        bos = self._model.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self._model.tokenizer.directory)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text, with BOS as the tokenizer puts it, but never a second one."""
        tokenizer = self._model.tokenizer
        if add_special_tokens is None:
            bos = tokenizer.special_tokens.get("bos_token")
            add_special_tokens = bos is None or not string.startswith(bos)
        return tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, is_greedy) of each (context, continuation)."""
        likelihoods: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return likelihoods

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of each whole text, in nats, in windows of the context that predict every
        token once; the first is predicted from BOS."""
        asked: list[Continuation] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            for context, tokens in map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(text, add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            ):
                asked.append(Continuation(tuple(context), tuple(tokens)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, likelihood in zip(owners, self._likelihoods(asked), strict=True):
            totals[owner] += likelihood.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """The model's continuation of each context, up to a stop string of its settings."""
        asked = [
            self._request(*request.args, seed=self._seed + index)
            for index, request in enumerate(requests)
        ]
        texts = [""] * len(asked)
        for done, (index, text) in enumerate(self._model.answers(asked), start=1):
            texts[index] = text
            self._report(done, len(asked), "answers")
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation. add_generation_prompt=False: the last message is the
        beginning of an answer, which the model continues."""
        assert self._template is not None, "require_chat_template comes first"
        return self._template.render(
            chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def require_chat_template(self) -> None:
        """Raise ConfigError when the model has no chat template."""
        tokenizer = self._model.tokenizer
        self._template = load_chat_template(tokenizer.directory, tokenizer.special_tokens)
        if self._template is None:
            raise ConfigError(
                f"--apply-chat-template: {tokenizer.directory} has no chat template (it is not a "
                "chat model); leave the flag out"
            )

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of the two; a continuation that merges into the context's last token is
        tokenized by itself."""
        before, behind = super()._encode_pair(context, continuation)
        if not behind:
            behind = self.tok_encode(continuation, add_special_tokens=False)
        return before, behind

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._continuation(context, tokens) for _, context, tokens in requests]
        return [
            (likelihood.log_likelihood, likelihood.is_greedy)
            for likelihood in self._likelihoods(asked)
        ]

    def _continuation(self, context: list[int], tokens: list[int]) -> Continuation:
        """The last ids that fit; the model does not read the very last one."""
        if not tokens:
            raise ConfigError("a task asks for the likelihood of an empty text; correct the task")
        if len(tokens) > self.max_length:
            raise ResourceError(
                f"a task asks for the likelihood of {len(tokens)} tokens, the context holds "
                f"{self.max_length}; give a larger --context or export with one"
            )
        room = self.max_length + 1 - len(tokens)
        context = context or [self.prefix_token_id]
        self.truncated += len(context) > room
        return Continuation(tuple(context[-room:]), tuple(tokens))

    def _likelihoods(self, asked: Sequence[Continuation]) -> list[Likelihood]:
        likelihoods: dict[int, Likelihood] = {}
        for index, one in self._model.likelihoods(asked):
            likelihoods[index] = one
            self._report(len(likelihoods), len(asked), "likelihoods")
        return [likelihoods[index] for index in range(len(asked))]

    def _request(self, context: str, settings: dict[str, Any], *, seed: int) -> Request:
        """The request of a generate_until instance. Raises ConfigError for an unknown setting,
        ResourceError when answer and context leave no prompt."""
        known = dict(normalize_gen_kwargs(settings, _MAX_NEW_TOKENS))
        stops = tuple(stop for stop in known["until"] if stop)
        max_new_tokens = int(known["max_gen_toks"])
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ResourceError(
                f"a task asks for {max_new_tokens} new tokens, the context holds "
                f"{self.max_length}; give a larger --context or export with one"
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self.truncated += len(ids) > room
        return Request(
            prompt_ids=ids[-room:],
            max_new_tokens=max_new_tokens,
            sampling=_sampling(known, seed),
            stop=stops,
            stop_token_ids=self._model.stop_token_ids | self._special_ids(stops),
        )

    def _special_ids(self, stops: Sequence[str]) -> set[int]:
        """Ids of the stop strings that are special tokens: these have no text to search."""
        tokenizer = self._model.tokenizer
        ids = {tokenizer.token_id(stop) for stop in stops}
        return {i for i in ids if i is not None and not tokenizer.decode([i])}

    def _report(self, done: int, total: int, what: str) -> None:
        if self._progress is not None:
            self._progress(done, total, what)


def _sampling(settings: dict[str, Any], seed: int) -> Sampling:
    """Our sampling for the harness's settings; greedy unless do_sample is true.

    Raises ConfigError for an unknown setting, which would change the answers.
    """
    rest = {
        name: value
        for name, value in settings.items()
        if name not in (*_SAMPLING, "do_sample", "until", "max_gen_toks")
    }
    for name, value in rest.items():
        if name not in _NEUTRAL or value not in (None, _NEUTRAL[name]):
            raise ConfigError(
                f"a task's generation_kwargs ask for {name}={value!r}, which this evaluation does "
                f"not do; it knows until, max_gen_toks, do_sample, {', '.join(_SAMPLING)}"
            )
    if not settings["do_sample"]:
        penalty = float(settings.get("repetition_penalty") or 1.0)
        return Sampling(repetition_penalty=penalty, seed=seed)
    given = {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
    given.setdefault("temperature", 1.0)  # as in transformers' generate
    return Sampling(**given, seed=seed)
