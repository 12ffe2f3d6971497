"""What a line that begins with a slash does in `awq-edge chat`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.errors import ConfigError

if TYPE_CHECKING:
    from awq_edge.cli.interrupt import Interrupt
    from awq_edge.runtime.conversation import Conversation, Turn
    from awq_edge.runtime.model import Model

HINT = "/help shows the commands, Ctrl-D leaves"
_HELP = """\
/reset       forget the conversation; the system prompt stays
/save FILE   write the conversation to a file
/load FILE   go on with a saved conversation
/stats       context, turns, speed and memory
/help        this
/exit        leave, as Ctrl-D does
Ctrl-C stops an answer; at the prompt it drops the line, and twice leaves.
Anything else is a message, also "/words with blanks" that are no command."""


class ChatCommands:
    """The commands of one chat. last: the latest answer, for /stats."""

    def __init__(
        self,
        conversation: Conversation,
        model: Model,
        interrupt: Interrupt,
        note: Callable[[str], None],
        warn: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        """note: shows a line to a person. warn: a line that a pipe's reader must see too. tell:
        what a command was asked for."""
        self._conversation = conversation
        self._model = model
        self._interrupt = interrupt
        self._note = note
        self._warn = warn
        self._tell = tell
        self.last: Turn | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/help": lambda argument: self._tell(_HELP),
        }

    def is_command(self, line: str) -> bool:
        """A known name, or one word that looks like one: "/rest" is a slip, "/etc is?" a text."""
        words = line.split()
        if not words:
            return False
        known = words[0] in self._commands or words[0] == "/exit"
        return line.lstrip().startswith("/") and (known or len(words) == 1)

    def run(self, line: str) -> bool:
        """Do it; False when the chat is to end. Raises ConfigError and ResourceError."""
        name, *rest = line.split(None, 1)
        argument = rest[0] if rest else ""
        if name == "/exit":
            return False
        if name not in self._commands:
            raise ConfigError(f"there is no command {name}; {HINT}")
        self._commands[name](argument.strip())
        return True

    def _reset(self, argument: str) -> None:
        self._conversation.reset()
        self.last = None
        self._note("the conversation is forgotten")

    def _save(self, argument: str) -> None:
        from awq_edge.runtime.saved_conversation import save

        path = _path("/save", argument)
        saved = self._conversation.saved()
        save(path, saved)
        self._note(f"{_turns(len(saved.messages))} saved in {path}")

    def _load(self, argument: str) -> None:
        from awq_edge.runtime.saved_conversation import read

        saved = read(_path("/load", argument))
        with self._interrupt:
            tokens = self._conversation.restore(saved, self._interrupt.requested)
        self.last = None
        kept = len(self._conversation.messages)
        dropped = self._conversation.dropped_turns - saved.dropped_turns
        self._note(f"{_turns(kept)} loaded, {tokens} tokens in the KV cache")
        if dropped:
            self._warn(f"it does not fit the context: the oldest {dropped} turn(s) are dropped")
        if saved.model_name != self._model.manifest.model_name:
            self._warn(
                f"its answers are of {saved.model_name}, this model is "
                f"{self._model.manifest.model_name}"
            )

    def _stats(self, argument: str) -> None:
        from awq_edge.runtime.memory import read_process_memory

        session, conversation = self._model.session, self._conversation
        dropped = conversation.dropped_turns
        rows = [
            ("context", f"{session.past_length} of {session.context} tokens are filled"),
            (
                "turns",
                _turns(len(conversation.messages)) + (f", {dropped} dropped" if dropped else ""),
            ),
        ]
        if self.last is not None:
            rows += _answer_rows(self.last)
        rows.append(("KV cache", f"{session.memory.kv_cache / 1e6:.1f} MB"))
        rss = read_process_memory().rss
        if rss is not None:
            rows.append(("memory of the process", f"{rss / 1e6:.1f} MB"))
        width = max(len(name) for name, _ in rows)
        self._tell("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _answer_rows(turn: Turn) -> list[tuple[str, str]]:
    timings = turn.result.timings
    new = timings.prompt_tokens - timings.reused_tokens
    rows = [
        ("last prompt", f"{timings.prompt_tokens} tokens, {new} of them new"),
        ("last answer", f"{timings.generated_tokens} tokens in {timings.total:.2f} s"),
    ]
    if timings.ttft is not None:
        rows.append(("TTFT", f"{1e3 * timings.ttft:.1f} ms"))
    if (prefill := timings.prefill_tokens_per_second) is not None:
        rows.append(("prefill", f"{prefill.median:.1f} tokens/s"))
    if (decode := timings.decode_tokens_per_second) is not None:
        rows.append(("decode", f"{decode.median:.1f} tokens/s"))
    return rows


def _turns(messages: int) -> str:
    count = messages // 2  # a system prompt is no turn
    return f"{count} turn{'' if count == 1 else 's'}"


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise ConfigError(f"{command} needs the name of a file: {command} chat.json")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # ~somebody
        raise ConfigError(f"{argument}: {error}") from None
