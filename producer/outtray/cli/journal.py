"""`outtray journal`: is the history what it was when it was written, and what of it to keep elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from outtray.cli import options
from outtray.cli.exits import Exit, UsageError
from outtray.cli.message import MessageId, journal_page, message_id
from outtray.cli.options import Json, examples
from outtray.cli.screen import count, done, errors, facts, hint, moment, out, print_json, table
from outtray.cli.session import database, ready_services
from outtray.journal import Break, Seal, Verified, read_journal, read_seals
from outtray.journal import verify as verify_journal
from outtray_schema.errors import NotFound

group = options.group("The journal: what happened to each message, and proof that nobody changed it.")


@group.command(
    "verify",
    epilog=examples(
        "outtray journal verify",
        "outtray journal verify --since 2026-11-01 --json",
        "outtray journal verify --message 0199b0c2-…",
        "outtray journal verify --against seals-2026-11-20.json",
    ),
)
def verify(
    message: Annotated[
        str | None, typer.Option("--message", metavar="ID", help="Only this message's chain.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DAY", help="Only this UTC day and later: 2026-11-20.", show_default=False),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="FILE", help="Seals that `journal seals --json` wrote before.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that the journal is as it was written.

    Every chain is hashed anew and every seal counted up. Exit 1 if anything was
    changed, added or taken away: the first places are named. It only reads: a
    standby of the database will do.
    """
    if message is not None and (since is not None or against is not None):
        raise UsageError("--message stands alone: one message's chain has no days and no seals")
    wanted = message_id(message) if message is not None else None
    exported = _exported(against) if against is not None else None
    with ready_services() as settings, database(settings) as connection:
        verified = verify_journal(connection, wanted, _day(since), exported)
    if wanted is not None and not verified.entries and verified.ok:
        raise NotFound(f"there is no journal of a message {wanted}")
    print_json({"ok": verified.ok, **_plain(verified)}) if as_json else _show(verified)
    if not verified.ok:
        raise typer.Exit(Exit.REFUSED)


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise UsageError(f"--since: {text!r} is no day; write 2026-11-20") from None


def _exported(file: Path) -> dict[date, str]:
    """Digests by day, as `journal seals --json` wrote them."""
    try:
        return {date.fromisoformat(seal["day"]): str(seal["digest"]) for seal in json.loads(file.read_text())["seals"]}
    except OSError as error:
        raise UsageError(f"--against: {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--against: {file} is not what `outtray journal seals --json` writes") from None


def _plain(verified: Verified) -> dict[str, Any]:
    return {
        "entries": verified.entries, "chains": verified.chains, "unlinked": verified.unlinked,
        "linked_until": verified.linked_until, "seals": verified.seals, "dropped_seals": verified.dropped_seals,
        "found": verified.found, "breaks": verified.breaks,
    }  # fmt: skip


def _show(verified: Verified) -> None:
    if verified.ok:
        linked = verified.entries - verified.unlinked
        done(
            f"{count(linked, 'entry', 'entries')} of {count(verified.chains, 'chain')}, as they were written."
            if linked
            else "Nothing is linked yet, and so nothing to be verified."
        )
        out.print(facts(_facts(verified)))
        return
    errors.print(f"[red]✗[/] The journal is not as it was written: {count(verified.found, 'place')}.", soft_wrap=True)
    for each in verified.breaks:
        errors.print(f"  {_place(each)}: {escape(each.told)}", soft_wrap=True)
    if verified.found > len(verified.breaks):
        errors.print(f"  and {verified.found - len(verified.breaks):,} more", soft_wrap=True)


def _facts(verified: Verified) -> Iterator[tuple[str, str]]:
    yield "linked until", moment(verified.linked_until) or "nothing yet: the dispatcher links, every few seconds"
    yield "not linked yet", count(verified.unlinked, "entry", "entries") if verified.unlinked else ""
    yield "seals", f"{verified.seals:,}" if verified.seals else ""
    yield "of dropped days", f"{verified.dropped_seals:,}" if verified.dropped_seals else ""


def _place(broken: Break) -> str:
    if broken.entry is None:
        return f"[bold]{broken.what}[/]: seal of {broken.day}" if broken.day else f"[bold]{broken.what}[/]"
    whose = "message" if broken.message_id else "mailbox" if broken.mailbox_id else "chain"
    kind = f" ({escape(broken.kind)})" if broken.kind else ""
    return f"[bold]{broken.what}[/]: {whose} {broken.chain}, entry {broken.entry}{kind}"


@group.command("seals", epilog=examples("outtray journal seals", "outtray journal seals --json > seals.json"))
def seals(as_json: Json = False) -> None:
    """List the days' seals, to be kept elsewhere.

    Whoever can rewrite the whole database can rewrite its seals too, but not
    those that you keep where they cannot write. Compare them with:
    outtray journal verify --against FILE
    """
    with ready_services() as settings, database(settings) as connection:
        found = read_seals(connection)
    if as_json:
        print_json({"seals": [_seal(each) for each in found]})
        return
    page = table("sealed to", "#entry", "#links", "digest", "")
    for each in found:
        gone = "days of it are dropped" if each.dropped_at else ""
        page.add_row(str(each.day), f"{each.to_id:,}", f"{each.links:,}", each.digest.hex(), gone)
    page.columns[0].no_wrap = True
    page.columns[3].overflow = "fold"
    out.print(page if found else "No day is sealed yet: the dispatcher seals each one soon after its end, in UTC.")
    if found:
        hint("keep them elsewhere: outtray journal seals --json")


def _seal(seal: Seal) -> dict[str, Any]:
    return {
        "day": seal.day, "after_id": seal.after_id, "to_id": seal.to_id, "links": seal.links,
        "previous": seal.previous.hex(), "digest": seal.digest.hex(), "sealed_at": seal.sealed_at,
        "dropped_at": seal.dropped_at,
    }  # fmt: skip


@group.command("show", epilog=examples("outtray journal show 0199b0c2-…"))
def show(name: MessageId, as_json: Json = False) -> None:
    """Show one message's history, even where the message itself is gone.

    `outtray message show` has it too, beside all that is known of a message.
    """
    wanted = message_id(name)
    with ready_services() as settings, database(settings) as connection:
        entries = read_journal(connection, wanted)
    if not entries:
        raise NotFound(f"there is no journal of a message {wanted}")
    if as_json:
        print_json({"message_id": wanted, "journal": entries})
        return
    out.print(journal_page(entries))
