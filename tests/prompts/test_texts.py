"""Texts of prompts: what a template may say, and what comes of values."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompts import texts
from server.rpc.errors import InvalidRequest


def variables(**types: str) -> list[dict[str, str]]:
    return [{"name": name, "type": kind, "description": ""} for name, kind in types.items()]


def refused(call: Any, *args: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        call(*args)
    return {each.field: each.reason for each in caught.value.violations}


@pytest.mark.parametrize(
    ("template", "declared", "broken"),
    [
        ("{{a}} and {{ a }}", {"a": "text"}, {}),
        (r"\{{a}} {\"x\": {\"y\": 1}} }}", {}, {}),
        ("{{a}}", {}, {"draft.template": "VARIABLE_UNDECLARED"}),
        ("a", {"a": "text"}, {"draft.variables[0].name": "VARIABLE_UNUSED"}),
        ("{{a", {"a": "text"}, {"draft.template": "BRACES_OPEN"}),
        ("{{A}}", {}, {"draft.template": "BRACES_OPEN"}),
        ("{{a.b}}", {}, {"draft.template": "BRACES_OPEN"}),
        ("{{ a|upper }}", {}, {"draft.template": "BRACES_OPEN"}),
        ("{{''.__class__}}", {}, {"draft.template": "BRACES_OPEN"}),
        ("{{{a}}}", {"a": "text"}, {"draft.template": "BRACES_OPEN"}),
        ("{% for x in y %}{% endfor %} ${x} %s", {}, {}),
    ],
)
def test_a_template_names_exactly_what_is_declared(
    template: str, declared: dict[str, str], broken: dict[str, str]
) -> None:
    if broken:
        assert refused(texts.check, template, variables(**declared), "draft") == broken
    else:
        texts.check(template, variables(**declared), "draft")


def test_nothing_is_declared_twice() -> None:
    twice = [*variables(a="text"), *variables(a="json")]
    assert refused(texts.check, "{{a}}", twice, "draft") == {"draft.variables[1].name": "VARIABLE_TWICE"}


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("text", "Ёж {{b}} \\{{", "Ёж {{b}} \\{{"),
        ("text", 1.0, None),
        ("integer", 5.0, "5"),
        ("integer", -(2.0**53), "-9007199254740992"),
        ("integer", 2.0**54, None),
        ("integer", 0.5, None),
        ("integer", True, None),
        ("integer", "5", None),
        ("number", 0.1, "0.1"),
        ("number", 1e21, "1000000000000000000000"),
        ("number", 1e-7, "0.0000001"),
        ("number", -2.0, "-2"),
        ("number", False, None),
        ("boolean", True, "true"),
        ("boolean", 1.0, None),
        ("date", "2026-02-28", "2026-02-28"),
        ("date", "2026-02-30", None),
        ("date", "20260228", None),
        ("json", {"b": [1.0, 0.5], "a": None, "я": "ё"}, '{"a": null, "b": [1, 0.5], "я": "ё"}'),
        ("json", "x", '"x"'),
    ],
)
def test_values_are_put_in_by_their_type(kind: str, value: Any, text: str | None) -> None:
    declared = variables(a=kind)
    if text is None:
        assert refused(texts.fill, "{{a}}", declared, {"a": value}) == {"variables.a": "VARIABLE_TYPE"}
    else:
        assert texts.fill("<{{a}}>", declared, {"a": value}) == f"<{text}>"


def test_all_that_is_missing_or_too_much_is_named_at_once() -> None:
    declared = variables(a="text", b="text", c="integer")
    assert refused(texts.fill, "{{a}}{{b}}{{c}}", declared, {"a": "x", "c": "x", "d": 1}) == {
        "variables.b": "VARIABLE_MISSING",
        "variables.c": "VARIABLE_TYPE",
        "variables.d": "VARIABLE_UNKNOWN",
    }


def test_few_values_cannot_come_to_gigabytes() -> None:
    template = "{{a}}" * 20_000
    begun = time.perf_counter()
    assert refused(texts.fill, template, variables(a="text"), {"a": "x" * 1_000_000}) == {"variables": "TEXT_TOO_LONG"}
    assert time.perf_counter() - begun < 5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.text(), st.sampled_from(["{{a}}", "{{ b }}", "{", "}}", "\\{{", "\\"])), max_size=8),
    st.text(),
)
def test_what_is_put_in_is_never_looked_at_again(pieces: list[str], value: str) -> None:
    template = "".join(pieces)
    try:
        named = {name for _, name in texts.parts(template) if name}
    except ValueError:
        return
    marker = "\x01"
    values = {"a": value, "b": value}
    declared = variables(**dict.fromkeys(sorted(named), "text"))
    if marker in template or not named <= values.keys():
        return
    filled = texts.fill(template, declared, {name: values[name] for name in named})
    marked = texts.fill(template, declared, dict.fromkeys(named, marker))
    assert filled == marked.replace(marker, value)
