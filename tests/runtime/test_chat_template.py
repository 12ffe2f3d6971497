"""Chat templates against transformers' own rendering, and what a template may not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_edge.errors import ConfigError, ModelError
from awq_edge.runtime.chat_template import ChatTemplate, load_chat_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hi <b>"},
    {"role": "assistant", "content": " Hello "},
    {"role": "user", "content": "Who's “there”?"},
]
# In the manner of ChatML, Llama 2 and Zephyr, with what templates of real models use.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}\n"
        "    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>\\n' }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "alternating": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% endif %}"
        "{% for m in loop_messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ system ~ m.content | trim }} [/INST]"
        "{% else %}{% generation %}{{ m.content | trim }}{{ eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}"
    ),
    "helpers": (
        "{% set ns = namespace(found=0) %}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% continue %}{% endif %}"
        "{% set ns.found = ns.found + 1 %}{{ m | tojson }}"
        "{% if loop.last %}{% break %}{% endif %}last{% endfor %}{{ ns.found }}"
        "{{ strftime_now('%Y') | length }}{{ tools is none }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation", [True, False])
def test_renders_as_transformers_does(name: str, generation: bool) -> None:
    module = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="needs the [host] extra"
    )
    rendered, _ = module.render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=generation, **TOKENS
    )
    ours = ChatTemplate(TEMPLATES[name], TOKENS).render(MESSAGES, add_generation_prompt=generation)
    assert ours == rendered[0]
    assert "Hi <b>" in ours


def test_the_templates_own_refusal_is_passed_on() -> None:
    template = ChatTemplate(TEMPLATES["alternating"], TOKENS)
    with pytest.raises(ConfigError, match="roles must alternate"):
        template.render([{"role": "assistant", "content": "x"}])


def test_a_syntax_error_names_the_line() -> None:
    template = ChatTemplate("fine\n{% if %}", TOKENS)  # broken for those alone who need it
    with pytest.raises(ModelError, match=r"line 2.*--chat-template FILE.*--raw"):
        template.check()
    with pytest.raises(ModelError, match=r"line 2"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/passwd' %}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_a_hostile_or_broken_template_is_a_clear_error(source: str) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate(source, TOKENS).render(MESSAGES)


def test_where_templates_are_looked_for(tmp_path: Path) -> None:
    def rendered() -> str | None:
        template = load_chat_template(tmp_path, TOKENS)
        return None if template is None else template.source

    assert rendered() is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config"}))
    assert rendered() == "config"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert rendered() == "named"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert rendered() == "json"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert rendered() == "{{ eos_token }}"


CHATML = TEMPLATES["chatml"]
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}"
    "<end>{% endfor %}"
)
SILENT_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("source", [CHATML, PARTS, NO_SYSTEM])
def test_parts_are_lines_and_nothing_is_nothing(source: str) -> None:
    template = ChatTemplate(source, TOKENS)
    parts = [{"type": "text", "text": "tell me a"}, {"type": "text", "text": "riddle"}]
    assert "tell me a\nriddle" in template.render(user(parts))
    messages = [*user("Hi"), {"role": "assistant", "content": None}, *user("Well?")]
    text = template.render(messages)
    assert "None" not in text and "Well?" in text


@pytest.mark.parametrize("source", [NO_SYSTEM, SILENT_SYSTEM])
def test_a_system_message_without_a_place_goes_before_the_first_question(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    template = ChatTemplate(source, TOKENS)
    messages = [{"role": "system", "content": "You are terse."}, *user("Hi")]
    for _ in range(2):
        assert "<user>You are terse.\n\nHi" in template.render(messages)
    assert len(caplog.records) == 1 and "system message" in caplog.text
    assert messages[0]["role"] == "system" and messages[1]["content"] == "Hi"


@pytest.mark.parametrize(
    "source",
    [
        "<user>nothing at all",
        "{% for m in messages %}{{ m.text }}{% endfor %}",
        "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}",
        "{{ messages[-1].content }}",
    ],
)
def test_a_template_that_loses_words_is_refused(source: str) -> None:
    talk = [*user("Hi there"), {"role": "assistant", "content": "Yes?"}, *user("What now?")]
    with pytest.raises(ConfigError, match="leaves out"):
        ChatTemplate(source, TOKENS).render(talk)


@pytest.mark.parametrize(
    ("source", "question"),
    [
        (
            "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
            "a b c</think>",
        ),
        ("{% for m in messages %}{{ m.content[:20] }}{% endfor %}", "word " * 20),
    ],
)
def test_words_that_a_template_cuts_off_are_missed(source: str, question: str) -> None:
    template = ChatTemplate(source, TOKENS)
    assert template.render(user("Hello")) == "Hello"
    with pytest.raises(ConfigError, match="words of the user's message 1"):
        template.render(user(question))


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m | tojson }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('/no_think', '') | trim }}{% endfor %}",
        "{% for m in messages %}{{ m.content.split() | join(' ') }}{% endfor %}",
    ],
)
def test_words_that_are_written_otherwise_are_there(source: str) -> None:
    ChatTemplate(source, TOKENS).render(user("/no_think"))
    ChatTemplate(source, TOKENS).render(user('Say "hi"\n to \t“Ann” \\ /no_think'))


def test_variables_reach_the_template() -> None:
    source = "{{ messages[0].content }}{{ enable_thinking }}{{ reasoning_effort }}{{ bos_token }}"
    template = ChatTemplate(source, TOKENS)
    variables = {"enable_thinking": False, "reasoning_effort": "low", "bos_token": "B"}
    assert template.render(user("Hi"), variables=variables) == "HiFalselowB"
    for name in ("messages", "add_generation_prompt"):
        with pytest.raises(ConfigError, match=f"{name} is no variable"):
            template.render(user("Hi"), variables={name: []})
    with pytest.raises(ConfigError, match="no JSON"):
        template.render(user("Hi"), variables={"x": object()})


@pytest.mark.parametrize("content", ["The answer", "The answer ", "a</think>b", ""])
@pytest.mark.parametrize("source", [CHATML, NO_SYSTEM, PARTS])
def test_an_answer_is_continued_where_it_ends(source: str, content: str) -> None:
    template = ChatTemplate(source, TOKENS)
    messages = [*user("Hi"), {"role": "assistant", "content": content}]
    text = template.render(messages, continue_final_message=True)
    trims = source is NO_SYSTEM
    assert text.endswith(content.strip() if trims else content)
    whole = template.render(messages, add_generation_prompt=False)
    assert whole.startswith(text) and whole != text


def test_only_an_answer_is_continued() -> None:
    with pytest.raises(ConfigError, match="role assistant"):
        ChatTemplate(CHATML, TOKENS).render(user("Hi"), continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (CHATML, "<|im_end|>\n"),
        (NO_SYSTEM, "<end><user>"),
        (TEMPLATES["alternating"], "</s>[INST] "),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "\n"),
        ("{{ messages[0].content }}", ""),
        ("{% if %}", None),
    ],
)
def test_what_ends_an_answer_is_found(source: str, end: str | None) -> None:
    template = ChatTemplate(source, TOKENS)
    if end is None:
        with pytest.raises(ModelError):
            template.turn_end  # noqa: B018
    else:
        assert template.turn_end.startswith(end) and (end or not template.turn_end)


@pytest.mark.parametrize(
    ("generation", "question", "beginning"),
    [
        ("<model><think>\n", "Hi", "<model><think>\n"),
        ("<model>", "<think>", "<model>"),
        ("<model>", "<model>", "<model>"),
        ("", "What is <think>", ""),
    ],
)
def test_the_beginning_of_a_turn_is_the_templates(
    generation: str, question: str, beginning: str
) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}" + generation + "{% endif %}"
    )
    # A block at a line's end takes the line break with it.
    source = source.replace("\n{% endif %}", "{{ '\\n' }}{% endif %}")
    template = ChatTemplate(source, TOKENS)
    messages = user(question)
    text = template.render(messages)
    assert template.beginning(text, messages) == beginning


def test_a_file_that_is_no_text_is_broken_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    template = load_chat_template(tmp_path, TOKENS)
    assert template is not None
    with pytest.raises(ModelError, match="not UTF-8"):
        template.render(MESSAGES)


def test_a_beginning_is_whole_where_an_end_stands_in_its_place() -> None:
    """Phi writes the end of the text where no answer is begun."""
    source = (
        "{% for m in messages %}{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}<think>{% else %}{{ eos_token }}{% endif %}"
    )
    template = ChatTemplate(source, TOKENS)
    for question in ("Hi", "2 <", "a <b"):
        assert template.beginning(template.render(user(question)), user(question)) == "<think>"
