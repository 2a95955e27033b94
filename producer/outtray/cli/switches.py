"""`outtray pause` and `outtray resume`: stop and go on, for everything or for one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli.exits import UsageError
from outtray.cli.mailboxes import mailbox_name
from outtray.cli.options import Json, Why, examples, flag
from outtray.cli.screen import done, out, print_json
from outtray.cli.session import client

PAUSE_EXAMPLES = examples(
    'outtray pause --all --why "wrong template"',
    'outtray pause --tag spring --app crm --why "typo in the subject"',
    "outtray pause --mailbox ann@example.com",
)
RESUME_EXAMPLES = examples("outtray resume --all", "outtray resume --tag spring --app crm")

Everything = Annotated[bool, flag("--all", text="Everything.")]
AppTarget = Annotated[
    str | None,
    typer.Option("--app", metavar="NAME", help="One app; with --tag or --mailbox, the app that they belong to."),
]
ProviderTarget = Annotated[str | None, typer.Option("--provider", metavar="NAME", help="One provider, e.g. smtp.")]
TagTarget = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="What has this tag.")]
MailboxTarget = Annotated[str | None, typer.Option("--mailbox", metavar="NAME", help="One mailbox, by address or id.")]


@dataclass(frozen=True, slots=True)
class _Target:
    """What is meant. `kind` is `mailbox`, or a switch's kind."""

    kind: Literal["all", "app", "provider", "tag", "mailbox"]
    name: str

    def __str__(self) -> str:
        return "everything" if self.kind == "all" else f"{self.kind} [bold]{escape(self.name)}[/]"


def pause(
    everything: Everything = False,
    app: AppTarget = None,
    provider: ProviderTarget = None,
    tag: TagTarget = None,
    mailbox: MailboxTarget = None,
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Let nothing of it leave until it is resumed.

    Binding from its commit on; what is with a provider at this moment may still leave. Messages keep their attempts.
    """
    target = _target(everything, app, provider, tag, mailbox)
    with client(_app_of(target, app)) as outtray:
        _pause(outtray, target, why)
    if as_json:
        print_json({"kind": target.kind, "target": target.name, "paused": True, "why": why})
        return
    done(f"Paused: {target}. No handover begins from now on; messages keep their attempts.")


def resume(
    everything: Everything = False,
    app: AppTarget = None,
    provider: ProviderTarget = None,
    tag: TagTarget = None,
    mailbox: MailboxTarget = None,
    as_json: Json = False,
) -> None:
    """Let it leave again."""
    target = _target(everything, app, provider, tag, mailbox)
    with client(_app_of(target, app)) as outtray:
        was_paused = _resume(outtray, target)
        others = outtray.switches()
    if as_json:
        print_json({"kind": target.kind, "target": target.name, "paused": False, "was_paused": was_paused})
        return
    done(f"Resumed: {target}." if was_paused else f"{str(target).capitalize()} was not paused.")
    for each in others:
        out.print(
            f"  [yellow]still paused[/]: {each.kind} {escape(each.target)} {escape(each.why)}".rstrip(), soft_wrap=True
        )


def _pause(outtray: Outtray, target: _Target, why: str) -> None:
    if target.kind == "mailbox":
        outtray.mailboxes.pause(mailbox_name(target.name), why)
    else:
        outtray.pause(target.kind, target.name, why)


def _resume(outtray: Outtray, target: _Target) -> bool:
    if target.kind == "mailbox":
        before = outtray.mailboxes.get(mailbox_name(target.name)).status
        outtray.mailboxes.resume(mailbox_name(target.name))
        return before == "paused"
    return outtray.resume(target.kind, target.name)


def _target(everything: bool, app: str | None, provider: str | None, tag: str | None, mailbox: str | None) -> _Target:
    """The one thing that the flags name. Raises `UsageError`."""
    targets: list[_Target] = []
    targets += [_Target("all", "")] if everything else []
    targets += [_Target("provider", provider)] if provider else []
    targets += [_Target("tag", tag)] if tag else []
    targets += [_Target("mailbox", mailbox)] if mailbox else []
    if app and not (tag or mailbox):
        targets.append(_Target("app", app))
    if len(targets) != 1:
        raise UsageError(
            "name exactly one of --all, --app, --provider, --tag and --mailbox (--app may stand beside the last two)"
        )
    return targets[0]


def _app_of(target: _Target, app: str | None) -> str | None:
    return app if target.kind in ("tag", "mailbox", "app") else None
