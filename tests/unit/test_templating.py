"""Templating: what a template may say, what it may not, and the bounds that no template gets over."""

from __future__ import annotations

import time
from typing import Any

import pytest

from outtray.templating import MOST_VALUE, Compiled, Source
from outtray_schema.errors import InvalidMessage, Refused

ROW = {"name": "ann", "person": {"city": "Ulm", "none": None}, "items": ["x", "y"], "n": 3, "empty": ""}


def filled(text: str, row: dict[str, Any] | None = None, part: str = "text") -> str:
    return Compiled(Source(**({"text": "x"} | {part: text}))).render(ROW if row is None else row)[part]


@pytest.mark.parametrize(
    ("text", "yields"),
    [
        ("Hi {{ name|title }}!", "Hi Ann!"),
        ("{{ company|default('there') }} {{ empty|d('-') }} {{ person.none|d('-') }}", "there - -"),
        ("{% if company is defined %}A{% else %}B{% endif %}", "B"),
        ("{{ person.city }} {{ person['city'] }}", "Ulm Ulm"),
        ("{% for i in items %}{{ loop.index }}{{ i }}{{ ',' if not loop.last }}{% endfor %}", "1x,2y"),
        ("{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "aba"),
        ("{% set whole = name ~ ' ' ~ n %}{{ whole }} {{ n * 2 + 1 }} {{ 'a' + 'b' }}", "ann 3 7 ab"),
        ("{{ items|join(' and ') }} {{ name|replace('n', 'N') }}", "x and y aNN"),
    ],
)
def test_what_mails_need_is_there(text, yields):
    assert filled(text) == yields


def test_html_is_always_escaped_and_a_subject_is_one_line():
    row = {"name": "<b>\nB&B"}
    assert filled("{{ name }} {{ name|nl2br }} {{ '<i>' ~ name }}", row, "html") == (
        "&lt;b&gt;\nB&amp;B &lt;b&gt;<br>\nB&amp;B &lt;i&gt;&lt;b&gt;\nB&amp;B"
    )
    assert filled("Hi {{ name }}\n", row, "subject") == "Hi <b> B&B"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{ company }}", "company"), ("{{ empty }}", "empty"), ("{{ company ~ name }}", "company"),
        ("{{ company + 1 }}", "company"), ("{% for c in company %}{% endfor %}", "company"),
        ("{{ person.zip.code }}", "zip"), ("{% if company %}{% endif %}", "company"), ("{{ name.upper }}", "upper"),
    ],
)  # fmt: skip
def test_a_missing_variable_is_named(text, name):
    with pytest.raises(InvalidMessage) as refused:
        filled(text)
    (problem,) = refused.value.problems
    assert problem.field == name and f"{name}|default" in problem.reason


@pytest.mark.parametrize(
    "text",
    [
        "{{ name", "{% macro f() %}{% endmacro %}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}",
        "{{ name.upper() }}", "{{ name.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ _tick() }}", "{{ self }}",
        "{{ name|attr('upper') }}", "{{ '{0.__class__}'.format(name) }}", "{{ lipsum() }}", "{{ name|pprint }}",
        "{{ cycler('a') }}", "{{ namespace(a=1) }}", "{{ 2 ** 99 }}", "{% set x %}y{% endset %}", "{{ range.start() }}",
        "{% for i in items recursive %}{{ loop(i) }}{% endfor %}", "{{ name is callable }}", "{{ name|safe }}",
        "{% filter upper %}x{% endfilter %}", "{{ name|center(99) }}", "{{ name|format(1) }}",
        "{% block x %}{% endblock %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)  # fmt: skip
def test_what_is_not_for_mails_is_refused_when_it_is_stored_with_its_line(text):
    with pytest.raises(Refused) as refused:
        Compiled(Source(text="\n" + text))
    assert refused.value.problems[0].field == "text" and "line " in refused.value.problems[0].reason


DOUBLING = "{% set a = 'aaaaaaaaaaaaaaaa' %}"


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
        "{% for i in range(n * 400) %}{% endfor %}",
        "{{ 'a' * 1000000000 }}", "{{ '%999999999d' % n }}",
        DOUBLING + "{% set a = a ~ a %}" * 40 + "{{ a }}",
        DOUBLING + "{% set a = a + a %}" * 40 + "{{ a }}",
        DOUBLING + "{% set a = a|replace('a', a) %}" * 12 + "{{ a }}",
        DOUBLING + "{% set a = a|join(a) %}" * 12 + "{{ a }}",
        "{% set a = " + repr("a" * 60_000) + " %}{% for i in range(99) %}{{ a }}{% endfor %}",
        "{% set n = n * 999999999 %}{% set n = n * 999999999 %}{{ n * n }}",
    ],
)  # fmt: skip
def test_no_template_gets_over_its_bounds(text):
    began = time.process_time()
    with pytest.raises(InvalidMessage):
        filled(text)
    assert time.process_time() - began < 5, "a bound, not patience"


def test_rows_hold_texts_numbers_dates_and_what_holds_those():
    for value in (object(), {"a": object()}, ["a", lambda: 1], "x" * (MOST_VALUE + 1)):
        with pytest.raises(InvalidMessage):
            filled("{{ name }}", {"name": value})


def test_a_template_without_a_body_or_of_too_much_text_is_refused():
    for source in (Source(subject="Hi"), Source(text="x" * 300_000)):
        with pytest.raises(Refused):
            Compiled(source)
