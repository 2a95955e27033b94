"""`outtray mailbox`: connect a mailbox, see what it may send, change that, and take it away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer
from rich.markup import escape

from outtray import Outtray
from outtray.cli import options, secret
from outtray.cli.exits import Exit, UsageError
from outtray.cli.options import AppName, Json, Yes, examples, flag
from outtray.cli.screen import MAILBOX_STATES, colored, count, done, facts, hint, moment, out, print_json, table, warn
from outtray.cli.secret import FromFile, FromStdin
from outtray.cli.session import client
from outtray.mailboxes import Mailbox as MailboxView
from outtray_schema.learned import Learned
from outtray_schema.plans import DAILY, PLANS, Limits, beyond_documented

group = options.group("Mailboxes: the accounts that mail leaves from.")
adding = options.group("Connect a mailbox.")
group.add_typer(adding, name="add")

Mailbox = Annotated[str, typer.Argument(metavar="MAILBOX", help="Its address or id.")]
MailboxOption = Annotated[
    str | None, typer.Option("--mailbox", metavar="MAILBOX", help="Its address or id.", show_default=False)
]

Tls = Literal["starttls", "implicit", "clear"]
Auth = Literal["auto", "plain", "login", "xoauth2"]
Host = Annotated[str, typer.Option("--host", metavar="NAME", help="The SMTP server, e.g. smtp.example.com.")]
Port = Annotated[int | None, typer.Option("--port", help="Default: 587; 465 with --tls implicit.", show_default=False)]
TlsFlag = Annotated[
    Tls | None,
    typer.Option("--tls", help="Default: starttls; implicit on port 465. clear: sandbox only.", show_default=False),
]
Username = Annotated[
    str | None, typer.Option("--username", metavar="NAME", help="Default: the address.", show_default=False)
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", metavar="FILE", help="Trust this authority as well: a company's own.", show_default=False
    ),
]
AuthFlag = Annotated[
    Auth | None, typer.Option("--auth", help="Default: auto, what the server offers.", show_default=False)
]
PlanName = Annotated[
    str | None, typer.Option("--plan", metavar="PLAN", help=f"One of {', '.join(PLANS)}.", show_default=False)
]
LimitFlags = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=N", help="Override one limit; NAME=none lifts it. May stand several times."),
]
Reserve = Annotated[
    int | None, typer.Option("--reserve", metavar="N", help="Messages a day kept for the person's own mail.")
]
Pace = Annotated[int | None, typer.Option("--pace", metavar="N", help="Messages a minute.")]
SenderName = Annotated[
    str | None, typer.Option("--name", metavar="TEXT", help='The name that recipients see, e.g. "Ann Lee".')
]
Aliases = Annotated[
    list[str] | None, typer.Option("--alias", metavar="ADDRESS", help="May send from it too. Several times.")
]


ImapHost = Annotated[
    str | None,
    typer.Option(
        "--imap-host",
        metavar="NAME",
        help="Look here for what was sent, by the same login. none: look nowhere.",
        show_default=False,
    ),
]
ImapPort = Annotated[
    int | None, typer.Option("--imap-port", help="Default: 993; 143 with --imap-tls starttls.", show_default=False)
]
ImapTls = Annotated[Tls | None, typer.Option("--imap-tls", help="Default: implicit.", show_default=False)]
SentCopies = Annotated[
    Literal["provider", "none", "unsaid"] | None,
    typer.Option(
        "--sent-copies",
        help="Who files a copy of what is sent. Default unsaid: as is known of the server, or seen there.",
        show_default=False,
    ),
]
ImapUsername = Annotated[
    str | None, typer.Option("--imap-username", metavar="NAME", help="Where IMAP has another.", show_default=False)
]
ImapPasswordFile = Annotated[
    Path | None,
    typer.Option("--imap-password-file", metavar="FILE", help="Where IMAP has another.", show_default=False),
]

OnUnknown = Annotated[
    Literal["hold", "resend", "app"] | None,
    typer.Option(
        "--on-unknown",
        help="What to do where nobody can tell whether a message left. app: as its app has it.",
        show_default=False,
    ),
]


def imap_server(host: str | None, port: int | None, tls: Tls | None, copies: str | None) -> dict[str, Any]:
    """The flags that were given, as fields of `ImapServer`. RFC 8314 3.2: implicit TLS on 993, STARTTLS on 143."""
    if host == "none" and (port or tls or copies):
        raise UsageError("--imap-host none: look nowhere; then no other flag of IMAP makes sense")
    if tls and port is None:
        port = 993 if tls == "implicit" else 143
    tls = tls or ("starttls" if port == 143 else None)
    named = {"host": host, "port": port, "tls": tls}
    found: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    if copies is not None:
        found["files_sent"] = {"provider": True, "none": False, "unsaid": None}[copies]
    return found


def _imap_password(file: Path | None) -> str | None:
    return None if file is None else secret.read_secret(False, file, "", "", "--imap-password-file")


def mailbox_name(text: str | None) -> UUID | str | None:
    """A mailbox as the client takes it: an id, or an address."""
    if text is None or "@" in text:
        return text
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is no mailbox's address or id; `outtray mailbox list` shows them") from None


@adding.command(
    "smtp",
    epilog=examples(
        "outtray mailbox add smtp ann@example.com --host smtp.example.com",
        "outtray mailbox add smtp ann@example.com --host smtp.example.com --port 465 \\\n"
        "      --limit messages=300 --pace 10",
        "pass ann | outtray mailbox add smtp ann@example.com --host smtp.example.com --password-stdin",
    ),
)
def add_smtp(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The mailbox's address.")],
    host: Host,
    port: Port = None,
    tls: TlsFlag = None,
    username: Username = None,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    name: SenderName = None,
    alias: Aliases = None,
    plan: PlanName = None,
    limit: LimitFlags = None,
    reserve: Reserve = None,
    pace: Pace = None,
    auth: AuthFlag = None,
    ca_file: CaFile = None,
    imap_host: ImapHost = None,
    imap_port: ImapPort = None,
    imap_tls: ImapTls = None,
    sent_copies: SentCopies = None,
    imap_username: ImapUsername = None,
    imap_password_file: ImapPasswordFile = None,
    default: Annotated[
        bool, flag("--default", text="Messages that name no mailbox leave from it. The first one is.")
    ] = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Connect a mailbox that sends by SMTP.

    It asks for the password, on the terminal or by the flags below. Nothing is sent.
    """
    imap = imap_server(imap_host, imap_port, imap_tls, sent_copies)
    if imap and imap_host is None:
        raise UsageError("name the server to look at, too: --imap-host")
    with client(app) as outtray:
        first = not any(each.is_default for each in outtray.mailboxes.list())
        added = outtray.mailboxes.add_smtp(
            address,
            **_server(host, port, tls),
            username=username,
            password=secret.read_password(from_stdin, from_file, f"Password of {username or address} at {host}"),
            name=name,
            aliases=alias or (),
            plan=plan or "smtp",
            limits=_limits(limit, reserve, pace),
            ca_file=str(ca_file.absolute()) if ca_file else None,
            auth=auth or "auto",
            imap=imap if imap_host not in (None, "none") else None,
            imap_username=imap_username,
            imap_password=_imap_password(imap_password_file),
            default=default or first,
        )
    _show_added(added, as_json)


def _server(host: str, port: int | None, tls: Tls | None) -> dict[str, Any]:
    """The two usual ports imply how TLS begins (RFC 8314 3.3: 465 implicit, 587 STARTTLS)."""
    chosen = tls or ("implicit" if port == 465 else "starttls")
    return {"host": host, "tls": chosen, "port": port or (465 if chosen == "implicit" else 587)}


def _show_added(added: MailboxView, as_json: bool) -> None:
    if as_json:
        print_json(added)
        return
    done(f"Mailbox [bold]{escape(added.address)}[/] added, {limits_line(added.limits)}.")
    _warn_beyond(added)
    if added.is_default:
        hint("the app's default: messages that name no mailbox leave from it")
    hint(f"try it: outtray mailbox test {added.address}")


def _warn_beyond(box: MailboxView) -> None:
    for sentence in beyond_documented(box.plan, box.limits):
        warn(sentence)


def _limits(flags: list[str] | None, reserve: int | None = None, pace: int | None = None) -> dict[str, Any]:
    """`NAME=N` flags as overrides of a plan. Raises `UsageError`; the names themselves are judged by the plan."""
    found: dict[str, Any] = {}
    for text in flags or ():
        name, equals, value = text.partition("=")
        if not name or not equals or not (value == "none" or value.isdecimal()):
            raise UsageError(f"--limit {text}: write NAME=N or NAME=none, e.g. --limit messages=300")
        found[name.strip()] = None if value == "none" else int(value)
    named = {"reserve": reserve, "per_minute": pace}
    return found | {name: value for name, value in named.items() if value is not None}


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
    files = {"True": ", the provider files copies", "False": ", the provider files no copies"}
    said = files.get(str(imap.get("files_sent")), "")
    return escape(f"imap {imap['host']}:{imap['port']} {imap['tls']}{said}")


def _server_line(box: MailboxView) -> str:
    server: Mapping[str, Any] = box.server
    line = f"{box.provider} {server.get('host', box.host)}:{server.get('port', '')} {server.get('tls', '')}"
    return escape(line + (f" (ca {server['ca_file']})" if server.get("ca_file") else ""))


@group.command(
    "set",
    epilog=examples(
        "outtray mailbox set ann@example.com --limit messages=800 --pace 20",
        "outtray mailbox set ann@example.com --plan workspace --reserve 100",
        "outtray mailbox set ann@example.com --on-unknown resend",
        "outtray mailbox set ann@example.com --imap-host imap.example.com --sent-copies provider",
        "outtray mailbox set ann@example.com --password",
    ),
)
def change(
    name: Mailbox,
    plan: PlanName = None,
    limit: LimitFlags = None,
    reserve: Reserve = None,
    pace: Pace = None,
    sender: SenderName = None,
    alias: Aliases = None,
    on_unknown: OnUnknown = None,
    forget_learned: Annotated[
        bool, flag("--forget-learned", text="Drop the lower limits that the provider's refusals taught.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="NAME", help="Share this budget.", show_default=False)
    ] = None,
    leave_budget: Annotated[
        str | None, typer.Option("--leave-budget", metavar="NAME", help="Share it no more.", show_default=False)
    ] = None,
    imap_host: ImapHost = None,
    imap_port: ImapPort = None,
    imap_tls: ImapTls = None,
    sent_copies: SentCopies = None,
    default: Annotated[bool, flag("--default", text="Messages that name no mailbox leave from it.")] = False,
    password: Annotated[bool, flag("--password", text="Ask for a new password.")] = False,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Change a mailbox's plan, limits or password.

    What is not named stays. A wait for a limit ends, and the next turn judges anew.
    """
    limits = _limits(limit, reserve, pace)
    new_password = password or from_stdin or from_file is not None
    changes = plan or limits or sender is not None or alias or on_unknown or forget_learned or budget or leave_budget
    imap = imap_server(imap_host, imap_port, imap_tls, sent_copies)
    if not (changes or default or new_password or imap):
        raise UsageError("nothing to change; see: outtray mailbox set --help")
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        if new_password:
            box = outtray.mailboxes.set_password(box.id, secret.read_password(from_stdin, from_file, "New password"))
        if default:
            box = outtray.mailboxes.set_default(box.id)
        if imap:
            box = outtray.mailboxes.set_imap(box.id, None if imap_host == "none" else imap)
        if changes:
            box = outtray.mailboxes.set(
                box.id, plan=plan, limits=limits, name=sender, aliases=alias, on_unknown=on_unknown,
                forget_learned=forget_learned, budget=budget, leave_budget=leave_budget,
            )  # fmt: skip
    if as_json:
        print_json(box)
        return
    done(f"Mailbox [bold]{escape(box.address)}[/] changed: {limits_line(box.limits)}.")
    _warn_beyond(box)


@group.command(
    "reconnect",
    epilog=examples(
        "outtray mailbox reconnect ann@example.com",
        "outtray mailbox reconnect ann@example.com --host smtp2.example.com",
    ),
)
def reconnect(
    name: Mailbox,
    username: Username = None,
    from_stdin: FromStdin = False,
    from_file: FromFile = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="NAME", help="Another server.", show_default=False)
    ] = None,
    port: Port = None,
    tls: TlsFlag = None,
    auth: AuthFlag = None,
    ca_file: CaFile = None,
    imap_username: ImapUsername = None,
    imap_password_file: ImapPasswordFile = None,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Give a mailbox new credentials.

    For after a password was changed or revoked: its queue is kept and goes on at once.
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        box = outtray.mailboxes.reconnect(
            box.id,
            password=secret.read_password(from_stdin, from_file, f"New password of {username or box.address}"),
            username=username,
            host=host,
            port=port,
            tls=tls,
            ca_file=str(ca_file.absolute()) if ca_file else None,
            auth=auth,
            imap_username=imap_username,
            imap_password=_imap_password(imap_password_file),
        )
    if as_json:
        print_json(box)
        return
    done(f"Mailbox [bold]{escape(box.address)}[/] is {colored(box.status, MAILBOX_STATES)} with its new credentials.")
    hint(f"try it: outtray mailbox test {box.address}")


@group.command(
    "remove",
    epilog=examples("outtray mailbox remove ann@example.com", "outtray mailbox remove ann@example.com --cancel"),
)
def remove(
    name: Mailbox,
    cancel: Annotated[bool, flag("--cancel", text="Cancel what still waits in it.")] = False,
    yes: Yes = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Take a mailbox away and erase its credentials.

    Refused while messages wait in it, unless --cancel.
    """
    with client(app) as outtray:
        box = outtray.mailboxes.get(mailbox_name(name))
        if not yes and not as_json and not typer.confirm(f"Remove {box.address} and erase its credentials?"):
            raise typer.Exit(Exit.REFUSED)
        cancelled = _remove(outtray, box, cancel)
    if as_json:
        print_json({"id": box.id, "removed": True, "cancelled": cancelled})
        return
    done(f"Mailbox {escape(box.address)} removed, {count(cancelled, 'message')} cancelled.")


def _remove(outtray: Outtray, box: MailboxView, cancel: bool) -> int:
    return outtray.mailboxes.remove(box.id, force=cancel)


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
