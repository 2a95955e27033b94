"""`outtray template`: texts for many people, stored by name and version."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from outtray.cli.exits import UsageError
from outtray.cli.options import AppName, Json, examples
from outtray.cli.options import group as make_group
from outtray.cli.screen import done, facts, hint, listed, moment, out, print_json, table
from outtray.cli.send_csv import columns_of, delimiter_of, variables
from outtray.cli.session import client
from outtray.templates import TemplateView, read_source

group = make_group("Texts for many people, stored by name and version.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A template: its latest version, or name@version.")]


@group.command(
    "add",
    epilog=examples(
        "outtray template add intro intro.txt",
        "outtray template add offer offer.html --subject 'An offer for {{ company }}'",
        "  Subject: Hello {{ name }}",
        "",
        "  Hi {{ name }}, …",
    ),
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Its text; .html is HTML; - for standard input.")],
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="The same as HTML.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", metavar="TEXT", help="Default: the first line.")] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Store a template, or a new version of it.

    A first line `Subject: …` is its subject; without one, it answers the message before it in a sequence.
    """
    is_html = file.endswith((".html", ".htm"))
    if is_html and html is not None:
        raise UsageError("FILE is HTML already; give the text as FILE and the HTML by --html")
    text = _read(file)
    source = read_source("", text) if is_html else read_source(text, _read(html) if html is not None else None)
    if subject is not None:
        source = replace(source, subject=subject)
    with client(app) as outtray:
        added = outtray.templates.add(name, subject=source.subject, text=source.text, html=source.html)
    if as_json:
        print_json(added)
        return
    verb = "Stored as" if added.created else "It is stored already, as"
    done(f"{verb} {escape(added.full_name)}; it reads {escape(listed(added.variables)) or 'no variables'}.")
    hint(f"try it: outtray template preview {added.name} --csv people.csv")


@group.command("list", epilog=examples("outtray template list", "outtray template list --json"))
def list_(app: AppName = None, as_json: Json = False) -> None:
    """List the templates, each in its latest version."""
    with client(app) as outtray:
        found = outtray.templates.list()
    if as_json:
        print_json([_facts(each) for each in found])
        return
    shown = table("template", "variables", "stored", "by")
    for each in found:
        stored = moment(each.created_at)
        shown.add_row(escape(each.full_name), escape(", ".join(each.variables)), stored, escape(each.actor))
    out.print(shown if found else "No templates. Store one: outtray template add intro intro.txt")


@group.command("show", epilog=examples("outtray template show intro", "outtray template show intro@2"))
def show(name: Name, app: AppName = None, as_json: Json = False) -> None:
    """Show a template as it was written."""
    with client(app) as outtray:
        found = outtray.templates.show(name)
    if as_json:
        print_json(found)
        return
    pairs = (
        ("template", f"[bold]{escape(found.full_name)}[/]"),
        ("variables", escape(", ".join(found.variables))),
        ("stored", f"{moment(found.created_at)} by {escape(found.actor)}"),
    )
    out.print(facts(pairs))
    _show_parts(found.source)


@group.command(
    "preview",
    epilog=examples(
        "outtray template preview intro --set name=Ann",
        "outtray template preview intro --csv people.csv --row 3",
    ),
)
def preview(
    name: Name,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable; several times for several.")
    ] = None,
    file: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Take them from a list.")] = None,
    row: Annotated[int, typer.Option("--row", min=2, metavar="N", help="Its row; 1 is the header.")] = 2,
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="VARIABLE=COLUMN", help="Where the list's name differs.")
    ] = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Show what a row makes of a template; nothing is stored."""
    filled = _row(file, row, column or ()) if file is not None else {}
    for text in values or ():
        variable, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: write NAME=VALUE, e.g. name=Ann")
        filled[variable] = value
    with client(app) as outtray:
        parts = outtray.templates.preview(name, filled)
    if as_json:
        print_json(parts)
    else:
        _show_parts(parts)


def _row(file: str, row: int, columns: Sequence[str]) -> dict[str, Any]:
    text = _read(file)
    delimiter = delimiter_of(text.partition("\n")[0])
    records = list(csv.reader(text.removeprefix("\ufeff").splitlines(keepends=True), delimiter=delimiter))
    if row > len(records):
        raise UsageError(f"--row {row}: the list has {len(records)} rows, the header among them")
    return dict(zip(variables(records[0], columns_of(columns)), map(str.strip, records[row - 1]), strict=False))


def _read(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"{source} cannot be read: {why}") from None


def _facts(found: TemplateView) -> dict[str, Any]:
    names = ("name", "version", "variables", "actor", "created_at")
    return {name: getattr(found, name) for name in names}


def _show_parts(parts: Mapping[str, str]) -> None:
    for name in ("subject", "text", "html"):
        if name in parts:
            out.print(f"\n[dim]{name}[/]")
            out.print(parts[name], markup=False, soft_wrap=True)
