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
        "{% if loop.index > 3 %}{% break %}{% endif %}"
        "{% set ns.found = ns.found + 1 %}{{ m | tojson }}{% endfor %}{{ ns.found }}"
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
    with pytest.raises(ModelError, match=r"line 2.*--raw"):
        ChatTemplate("fine\n{% if %}", TOKENS)


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
        return None if template is None else template.render(MESSAGES)

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
    assert rendered() == "</s>"
