"""`outtray mailbox list`, `show`, `plans`: what a mailbox is and may send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape

from outtray.cli.mailboxes.flags import Mailbox, mailbox_name
from outtray.cli.mailboxes.group import group
from outtray.cli.options import AppName, Json, examples
from outtray.cli.screen import MAILBOX_STATES, colored, facts, hint, moment, out, print_json, table, warn
from outtray.cli.session import client
from outtray.cli.windows import times_facts
from outtray.mailboxes import Mailbox as MailboxView
from outtray_schema.hosts import HOSTS
from outtray_schema.learned import Learned
from outtray_schema.plans import DAILY, PLANS, Limits, beyond_documented


def warn_beyond(box: MailboxView) -> None:
    for sentence in beyond_documented(box.plan, box.limits):
        warn(sentence)


def limits_line(limits: Limits) -> str:
    """Limits in one line, the daily ones first."""
    words = {
        "messages": "messages",
        "recipients": "recipients",
        "external": "external",
        "unique_external": "unique external",
    }
    parts = [f"{number:,} {words[name]}" for name in DAILY if (number := _shown(limits, name)) is not None]
    line = f"{', '.join(parts)} in 24 h" if parts else "no daily limit"
    if limits.per_minute is not None:
        line += f", {limits.per_minute} a minute"
    return line + (f", {limits.reserve} kept in reserve" if limits.reserve else "")


def _shown(limits: Limits, name: str) -> int | None:
    """A limit as its plan has it, or the lower one that was learned."""
    number: int | None = getattr(limits, name)
    lesson = limits.lesson(name)
    return number if lesson is None else lesson.limit


def learned_line(each: Learned) -> str:
    """What a refusal taught, in one line."""
    plan = "forgotten" if each.plan is None else f"the plan's {each.plan:,}"
    return (
        f"the provider refused at {each.used:,} {each.measure} on {moment(each.at)}; +10 % a day without a refusal,"
        f" {plan} on {moment(each.forgotten_at)}"
    )


@group.command("list", epilog=examples("outtray mailbox list", "outtray mailbox list --app crm --json"))
def show_all(app: AppName = None, as_json: Json = False) -> None:
    """List an app's mailboxes."""
    with client(app) as outtray:
        boxes = outtray.mailboxes.list()
    if as_json:
        print_json(boxes)
        return
    if not boxes:
        out.print("No mailboxes yet: outtray mailbox add smtp ADDRESS --host SERVER")
        return
    page = table("mailbox", "state", "plan", "may send")
    page.columns[0].no_wrap = True
    for box in boxes:
        page.add_row(escape(box.address), _state(box), box.plan, limits_line(box.limits))
    out.print(page)


def _state(box: MailboxView) -> str:
    if box.status == "active" and box.parked_until and box.parked_until > datetime.now(UTC):
        return "[yellow]parked[/]"
    return colored(box.status, MAILBOX_STATES)


@group.command("show", epilog=examples("outtray mailbox show ann@example.com"))
def show(name: Mailbox, app: AppName = None, as_json: Json = False) -> None:
    """Show one mailbox: server, plan, limits, state.

    Why it does not send is another question: outtray explain --mailbox MAILBOX
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
    if as_json:
        print_json(box)
        return
    out.print(facts(_facts(box)))


def _facts(box: MailboxView) -> Iterator[tuple[str, str]]:
    yield "mailbox", f"[bold]{escape(box.address)}[/] {escape(box.name)}"
    yield "id", str(box.id)
    yield "aliases", escape(", ".join(box.aliases))
    yield "state", _state(box) + (f": {escape(box.status_reason)}" if box.status_reason else "")
    if box.parked_until and box.parked_until > datetime.now(UTC):
        yield "parked until", f"{moment(box.parked_until)}: {escape(box.parked_reason or '')}"
    yield "server", _server_line(box)
    yield "evidence", _imap_line(box.server.get("imap"))
    yield (
        "plan",
        f"{box.plan} [dim]{escape(PLANS[box.plan].source)}, {PLANS[box.plan].date}[/]"
        if box.plan in PLANS
        else box.plan,
    )
    yield "may send", limits_line(box.limits)
    for each in box.limits.learned:
        yield "learned", learned_line(each)
    yield from times_facts(box.times)
    yield "budgets", escape(", ".join(box.budgets))
    yield "per message", f"{box.limits.recipients_per_message} recipients" if box.limits.recipients_per_message else ""
    yield (
        "overrides",
        escape(" ".join(f"{name}={'none' if value is None else value}" for name, value in box.overrides.items())),
    )
    yield "on unknown", box.on_unknown or ""
    yield "default", "messages that name no mailbox leave from it" if box.is_default else ""
    yield "next turn", moment(box.next_at)
    yield "turn until", moment(box.turn_until)
    yield "added", moment(box.created_at)


def _imap_line(imap: Mapping[str, Any] | None) -> str:
    if not imap:
        return ""
    copy = f", sent copy: {imap['sent_copy']}" if imap.get("sent_copy") else ""
    files = {"True": ", the provider files copies", "False": ", the provider files no copies"}
    said = files.get(str(imap.get("files_sent")), "")
    return escape(f"imap {imap['host']}:{imap['port']} {imap['tls']}{said}{copy}")


def _server_line(box: MailboxView) -> str:
    server: Mapping[str, Any] = box.server
    line = f"{box.provider} {server.get('host', box.host)}:{server.get('port', '')} {server.get('tls', '')}"
    if server.get("pin"):
        return escape(f"{line} (pinned: {server['pin']})")
    own = f" (ca {server['ca_file']})" if server.get("ca_file") else " (an authority of its own)"
    return escape(line + (own if server.get("ca_file") or server.get("ca") else ""))


@group.command("hosts", epilog=examples("outtray mailbox hosts"))
def show_hosts(as_json: Json = False) -> None:
    """Show the mail hosts that are known.

    `mailbox add smtp` finds them by an address's domain; for a domain of your own there, name the host by --preset.
    """
    if as_json:
        print_json([asdict(each) for each in HOSTS])
        return
    page = table("preset", "domains", "server", "imap")
    for each in HOSTS:
        domains = ", ".join(each.domains[:2]) + (", …" if len(each.domains) > 2 else "")
        page.add_row(each.name, domains, each.smtp["host"], (each.imap or {}).get("host", ""))
    out.print(page)
    hint("a domain of your own there: outtray mailbox add smtp ADDRESS --preset NAME")
    hint("where each is known from, and since when: outtray mailbox hosts --json")


@group.command("plans", epilog=examples("outtray mailbox plans"))
def plans(as_json: Json = False) -> None:
    """Show the plans that a mailbox can be on.

    Each with the source of its figures, and when they were read there.
    """
    if as_json:
        print_json(list(PLANS.values()))
        return
    page = table("plan", "may send", "source", "read on")
    for plan in PLANS.values():
        page.add_row(plan.name, limits_line(plan.limits), escape(plan.source), str(plan.date))
    out.print(page)
    hint("any limit can be overridden: outtray mailbox set MAILBOX --limit NAME=N")
