"""What `outtray sandbox` says when it is up: for people, for machines, and for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from outtray.cli.screen import facts, table
from outtray_sandbox.sandbox import APPS, PEOPLE, Sandbox
from outtray_sandbox.sandbox.connecting import commands, in_python


def exports(environment: Mapping[str, str]) -> str:
    """Lines that a shell reads: `. FILE`."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items())


def as_json(sandbox: Sandbox) -> dict[str, Any]:
    """One document with everything: what a test harness in another language begins with."""
    people = [
        {"provider": each.provider, "address": each.address, "scopes": list(each.scopes), "secret": each.secret}
        for each in PEOPLE
    ]
    return {
        "url": sandbox.url,
        "environment": sandbox.environment,
        "apps": [{"provider": app.issuer, "client_id": app.client_id, "secret": app.secret} for app in APPS],
        "people": people,
        "commands": commands(sandbox.smtp),
        "folder": str(sandbox.folder),
    }


def show(console: Console, sandbox: Sandbox) -> None:
    """The page, the settings, who is there and how to connect them."""
    console.print(
        facts(
            [
                ("sent mail", sandbox.url),
                ("faults", f"{sandbox.url}/faults"),
                ("ledgers", str(sandbox.folder)),
                ("end", "Ctrl-C"),
            ]
        )
    )
    _heading(console, "Point a deployment at it (alone: outtray sandbox --env)")
    _lines(console, exports(sandbox.environment))
    _heading(console, "People who have agreed already")
    console.print(_people())
    _heading(console, "Connect them: each consent page agrees at once")
    _lines(console, "\n".join(commands(sandbox.smtp)))
    _heading(console, "Or in Python, everybody: outtray_sandbox.sandbox.Sandbox.connect(outtray); one:")
    _lines(console, in_python(PEOPLE[0]))


def _people() -> Any:
    page = table("provider", "address", "granted", "refresh token, or password")
    for each in PEOPLE:
        page.add_row(each.provider, each.address, each.grants or "", each.secret)
    return page


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold"))


def _lines(console: Console, text: str) -> None:
    """To be copied: no line is wrapped, nothing is markup."""
    console.print(Text(text), soft_wrap=True)
