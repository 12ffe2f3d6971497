"""Templates that never end or take all memory end in a line, and the next one works."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from awq_edge.errors import ConfigError, ModelError
from awq_edge.process import worker_process
from awq_edge.runtime import template_process
from awq_edge.runtime.template_process import render

VARIABLES: dict[str, Any] = {"messages": [{"role": "user", "content": "a\nb"}], "x": "a\nb"}
HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(99) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "center": "{{ x.center(10**10) }}",
    "multiplied": "{{ x * 10**11 }}",
    "folded when compiled": "{{ 'a' * 10**11 }}",
    "a list": "{{ [0] * 10**10 }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "a format of str": "{{ '{:>10000000000}'.format(x) }}",
    "indent": "{{ x | indent(10**10) }}",
    "json": "{{ [x] | tojson(indent=10**10) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "a sum": "{{ " + "1+" * 30000 + "1 }}",
    "blocks": "{% if x %}" * 3000 + "{% endif %}" * 3000,
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(template_process, "_pool", template_process.new_pool())


@pytest.mark.parametrize("name", HOSTILE)
def test_it_ends_in_a_line(name: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=r"chat template (was ended|is broken)"):
        render(HOSTILE[name], VARIABLES)
    assert render("{{ x }}", VARIABLES) == "a\nb"
    template_process._pool.close()


def test_others_are_rendered_meanwhile() -> None:
    found: list[str] = []

    def hostile() -> None:
        with pytest.raises(ConfigError):
            render(HOSTILE["loops"], VARIABLES)
        found.append("hostile")

    thread = threading.Thread(target=hostile)
    thread.start()
    time.sleep(0.02)
    found.append(render("{{ x }}", VARIABLES))
    thread.join()
    assert found == ["a\nb", "hostile"]
    template_process._pool.close()


def test_one_process_serves_all() -> None:
    for number in range(20):
        assert render("{{ n }}", {"n": number}) == str(number)
    (worker,) = template_process._pool._idle
    process = worker._process
    template_process._pool.close()
    assert process.poll() is not None


def test_a_process_that_was_killed_is_replaced() -> None:
    render("", {})
    (worker,) = template_process._pool._idle
    worker._process.kill()
    worker._process.wait()
    assert render("{{ x }}", VARIABLES) == "a\nb"
    template_process._pool.close()


def test_what_is_no_unicode_comes_back_as_it_was() -> None:
    assert render("{{ x }}", {"x": "a\udc80🙂"}) == "a\udc80🙂"
    template_process._pool.close()
