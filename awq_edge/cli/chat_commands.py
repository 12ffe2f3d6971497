"""The slash commands of `awq-edge chat`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.artifacts.paths import user_path
from awq_edge.cli.chat_input import QUOTES
from awq_edge.cli.chat_settings import NAMES, parse_setting, settings_rows
from awq_edge.errors import ConfigError
from awq_edge.runtime.chat_template import SWITCHES
from awq_edge.terminal_text import printable
from awq_edge.units import size_text

if TYPE_CHECKING:
    from awq_edge.cli.interrupt import Interrupt
    from awq_edge.runtime.conversation import Conversation, Turn
    from awq_edge.runtime.model import Model
    from awq_edge.runtime.saved_conversation import SavedConversation

HINT = '/help shows the commands, """ begins a message of several lines, Ctrl-D leaves'
_SHOWN = ("info", "parameters", "system", "template")
_WIDTH = 17  # of the first column of /help
_KEYS = (
    (QUOTES, "begins a message of several lines, and ends it; \\ at a line's end adds one line"),
    ("Ctrl-C", "stops an answer; at the prompt it drops the line, and twice leaves"),
    ("Ctrl-D", "leaves"),
    ("Tab", "completes a command, a setting or the name of a file"),
)
_ELSE = 'Anything else is a message, also "/words with blanks" that are no command.'


@dataclass(frozen=True)
class _Command:
    """One command. names: the first is shown, the others are known from other programs."""

    names: tuple[str, ...]
    argument: str
    help: str
    run: Callable[[str], None] | None


class ChatCommands:
    """The commands of one chat.

    last: the latest answer, for /stats. again: a message to be answered next, without being typed.
    quiet: say nothing after answers.
    """

    def __init__(
        self,
        conversation: Conversation,
        model: Model,
        interrupt: Interrupt,
        note: Callable[[str], None],
        warn: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        """note: shows a line to a person.
        warn: shows one to a pipe's reader too.
        tell: shows the output of a command.
        """
        self._conversation = conversation
        self._model = model
        self._interrupt = interrupt
        self._note = note
        self._warn = warn
        self._tell = tell
        self.last: Turn | None = None
        self.again: str | None = None
        self.quiet = False
        self._list = (
            _Command(("/clear", "/reset"), "", "forget the conversation, not the system prompt",
                     self._reset),
            _Command(("/save",), "FILE", "write the conversation; /save! replaces another one",
                     self._save),
            _Command(("/save!",), "FILE", "", partial(self._save, replace=True)),
            _Command(("/load",), "FILE", "go on with a saved conversation", self._load),
            _Command(("/regen", "/retry"), "", "answer the last message again", self._regenerate),
            _Command(("/set",), "NAME VALUE", "change a setting; alone it shows them", self._set),
            _Command(("/show",), "[WHAT]", ", ".join(_SHOWN), self._show),
            _Command(("/stats",), "", "context, turns, speed and memory", self._stats),
            _Command(("/help", "/?"), "", "this", self._help),
            _Command(("/bye", "/exit", "/quit"), "", "leave", None),
        )  # fmt: skip
        self._commands = {name: command for command in self._list for name in command.names}

    def is_command(self, message: str) -> bool:
        """True for a known name, or one word that looks like one: "/rest" is a slip, "/etc is?" a
        text."""
        words = message.split()
        if not words or "\n" in message.strip():
            return False
        known = words[0] in self._commands
        slip = len(words) == 1 and words[0] not in SWITCHES
        return message.lstrip().startswith("/") and (known or slip)

    def completions(self, line: str) -> list[str]:
        """Whole lines that begin with `line`: commands, and what may stand behind them."""
        name, blank, argument = line.partition(" ")
        if not blank:
            return [
                spelling + (" " if command.argument else "")
                for spelling, command in self._commands.items()
                if line and spelling.startswith(line)
            ]
        words = {"/set": NAMES, "/show": _SHOWN}.get(name, ())
        if name in ("/save", "/save!", "/load"):
            words = _file_names(argument)
        return [f"{name} {word}" for word in words if word.startswith(argument)]

    def run(self, line: str) -> bool:
        """Run a command; False when the chat is to end. Raises ConfigError and ResourceError."""
        name, *rest = line.split(None, 1)
        command = self._commands.get(name)
        if command is None:
            raise ConfigError(f"there is no command {name}; {HINT}")
        if command.run is None:
            return False
        command.run(rest[0].strip() if rest else "")
        return True

    def _help(self, argument: str) -> None:
        rows = []
        for command in self._list:
            if command.help:
                names = f"{command.names[0]} {command.argument}".strip()
                others = f" (also {', '.join(command.names[1:])})" if command.names[1:] else ""
                rows.append((names, command.help + others))
        lines = [f"{name:<{_WIDTH}}{text}" for name, text in (*rows, *_KEYS)]
        self._tell("\n".join([*lines, _ELSE]))

    def _reset(self, argument: str) -> None:
        self._conversation.reset()
        self.last = None
        self._note("the conversation is forgotten")

    def _save(self, argument: str, *, replace: bool = False) -> None:
        from awq_edge.runtime.saved_conversation import save

        path = _path("/save", argument)
        saved = self._conversation.saved()
        save(path, saved, replace=replace)
        self._note(f"{_turns(len(saved.messages))} saved in {path}")

    def _load(self, argument: str) -> None:
        from awq_edge.runtime.saved_conversation import read

        saved = read(_path("/load", argument))
        with self._interrupt:
            tokens = self._conversation.restore(saved, self._interrupt.requested)
        self.last = None
        self._say_loaded(saved, tokens)

    def _say_loaded(self, saved: SavedConversation, tokens: int) -> None:
        kept = len(self._conversation.messages)
        dropped = self._conversation.dropped_turns - saved.dropped_turns
        self._note(f"{_turns(kept)} loaded, {tokens} tokens in the KV cache")
        if dropped:
            self._warn(
                f"it does not fit the context: the model does not see the oldest {dropped} turn(s)"
            )
        if saved.model_name != self._model.manifest.model_name:
            self._warn(
                f"its answers are of {saved.model_name}, this model is "
                f"{self._model.manifest.model_name}"
            )

    def _regenerate(self, argument: str) -> None:
        self.again = self._conversation.take_back()

    def _set(self, argument: str) -> None:
        if not argument:
            self._show("parameters")
            return
        name, value = parse_setting(argument)
        if name in ("quiet", "verbose"):
            self.quiet = name == "quiet"
            return
        conversation = self._conversation
        if name == "system":
            conversation.set_system(value)
        elif name == "stop":
            conversation.stop = value
        elif name == "max_new_tokens":
            conversation.max_new_tokens = value
        else:
            from dataclasses import replace

            conversation.sampling = replace(conversation.sampling, **{name: value})
        self._note(f"{name} is {'off' if value in (None, ()) else value!r}")

    def _show(self, argument: str) -> None:
        what = argument or "info"
        if what not in _SHOWN:
            raise ConfigError(f"/show {what}: there are {', '.join(_SHOWN)}")
        manifest, conversation = self._model.manifest, self._conversation
        if what == "parameters":
            self._tell(_aligned(settings_rows(conversation)))
        elif what == "system":
            self._tell(conversation.system or "no system prompt")
        elif what == "template":
            template = self._model.chat_template
            self._tell("no chat template" if template is None else template.source)
        else:
            weights = f"{manifest.bits}-bit {manifest.method}, group {manifest.group_size}"
            rows = [
                ("model", manifest.model_name),
                ("architecture", manifest.model_type),
                ("weights", "unquantized" if manifest.method == "none" else weights),
                ("runtime", f"{manifest.runtime}, {manifest.activation_dtype}"),
                ("context", f"{self._model.session.context} tokens"),
                ("bundle", str(self._model.bundle.path)),
            ]
            self._tell(_aligned(rows))

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
        rows.append(("KV cache", f"{size_text(session.memory.kv_cache)}"))
        rss = read_process_memory().rss
        if rss is not None:
            rows.append(("memory of the process", f"{size_text(rss)}"))
        self._tell(_aligned(rows))


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


def _aligned(rows: list[tuple[str, str]]) -> str:
    from awq_edge.terminal_text import one_line

    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {one_line(value)}" for name, value in rows)


def _turns(messages: int) -> str:
    count = messages // 2  # a system prompt is no turn
    return f"{count} turn{'' if count == 1 else 's'}"


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise ConfigError(f"{command} needs the name of a file: {command} chat.json")
    return user_path(argument, command)


def _file_names(beginning: str) -> tuple[str, ...]:
    """Files and folders, these with a slash, whose names go on what was typed of a path."""
    tail = beginning.rpartition("/")[2]
    typed = beginning.removesuffix(tail)
    try:
        entries = sorted(Path(typed).expanduser().iterdir())
    except (OSError, RuntimeError, ValueError):  # there is none, or no such home
        return ()
    return tuple(
        typed + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(tail) and (tail or not entry.name.startswith("."))
        if entry.name == printable(entry.name)
    )
