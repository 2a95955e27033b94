"""The closing summary: what we say, beside what the servers' own ledgers say. Nothing is believed that only we say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from outtray.explain import Explanation
from outtray_sandbox.accepted import Accepted, most_in_any_24h
from outtray_sandbox.demo.ids import Ids, read_ids
from outtray_sandbox.demo.ids import lines_of as ids_of
from outtray_sandbox.demo.reasons import is_stated, lines_of
from outtray_sandbox.demo.scenario import Faults
from outtray_sandbox.demo.stage import Stage, messages
from outtray_sandbox.demo.watch import BoxNow, Now, look

# Reads every message's state; locks nothing.
STATES = "SELECT m.id::text AS id, m.state FROM outtray.message m"
NAMED_WITHIN = timedelta(seconds=3)
"""How much later than the time that Gmail named: its Date header has whole seconds, and we look five times a second."""


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence of the promise, and whether it held."""

    held: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Accounts:
    """Both accounts side by side: `sent` and `waiting` are ours by message id, `taken` is the servers'.

    `reasons` say by mailbox why mail waits in it.
    """

    now: Now
    sent: frozenset[str]
    waiting: frozenset[str]
    others: int
    taken: tuple[Accepted, ...]
    reasons: Mapping[str, Explanation]
    ids: Ids

    @property
    def taken_times(self) -> Counter[str]:
        return Counter(map(message_of, self.taken))

    def taken_from(self, box: BoxNow) -> list[Accepted]:
        return [accepted for accepted in self.taken if accepted.user == box.player.address]


def message_of(accepted: Accepted) -> str:
    """The id of the message that a server took: the Message-ID that it was given begins with it."""
    return accepted.rfc_message_id.removeprefix("<").partition("@")[0]


def read_accounts(stage: Stage, reasons: Mapping[str, Explanation]) -> Accounts:
    """Ours from PostgreSQL, theirs from the files that the servers wrote before they answered."""
    rows = stage.database.execute(STATES).fetchall()
    return Accounts(
        now=look(stage),
        sent=frozenset(row["id"] for row in rows if row["state"] == "sent"),
        waiting=frozenset(row["id"] for row in rows if row["state"] == "queued"),
        others=sum(row["state"] not in ("sent", "queued") for row in rows),
        taken=tuple(stage.taken()),
        reasons=reasons,
        ids=read_ids(stage),
    )


def checks(accounts: Accounts, faults: Faults, ended: dict[str, int]) -> list[Check]:
    """Every promise of this demo against both accounts."""
    return [
        _nothing_lost(accounts),
        _once_each(accounts),
        _the_same(accounts),
        _the_three_ids(accounts),
        *[_not_over(accounts, box) for box in accounts.now.boxes if accounts.taken_from(box) or box.used],
        _waits_stated(accounts),
        _until_the_named_time(faults),
        _faults_fell(faults),
        _ended_cleanly(accounts, ended),
    ]


def _nothing_lost(accounts: Accounts) -> Check:
    total = len(messages())
    found = len(accounts.sent) + len(accounts.waiting)
    return Check(
        found == total and accounts.others == 0,
        f"none lost: of {total} messages {len(accounts.sent)} are sent and {len(accounts.waiting)} wait; "
        f"{total - found} missing, {accounts.others} in any other state",
    )


def _once_each(accounts: Accounts) -> Check:
    twice = sum(times > 1 for times in accounts.taken_times.values())
    return Check(twice == 0, f"once each: the servers took {len(accounts.taken)} mails, {twice} of them more than once")


def _the_same(accounts: Accounts) -> Check:
    taken = frozenset(accounts.taken_times)
    only_ours, only_theirs = len(accounts.sent - taken), len(taken - accounts.sent)
    return Check(
        only_ours == only_theirs == 0,
        f"the same ones: {only_ours} of our sent are missing there, {only_theirs} of theirs are not sent here",
    )


def _the_three_ids(accounts: Accounts) -> Check:
    ids = accounts.ids
    alike = ids.ours == ids.theirs and bool(ids.ours) and not any(None in three for three in ids.ours)
    return Check(
        alike,
        f"the three ids: of {len(ids.ours)} messages by Gmail and Graph, {len(ids.ours & ids.theirs)} have the id, "
        "Message-ID and conversation that their provider filed",
    )


def _until_the_named_time(faults: Faults) -> Check:
    named, parked = faults.gmail_named, faults.gmail_parked
    held = named is not None and parked is not None and timedelta(0) <= parked - named <= NAMED_WITHIN
    at = [each.astimezone().strftime("%H:%M:%S") if each else "never" for each in (named, parked)]
    return Check(held, f"as long as asked: Gmail named {at[0]}, and its mailbox was parked until {at[1]}")


def _not_over(accounts: Accounts, box: BoxNow) -> Check:
    measure: Literal["messages", "recipients"] = "messages" if box.measure == "messages" else "recipients"
    theirs = most_in_any_24h(accounts.taken_from(box), measure)
    used = theirs + box.player.used_elsewhere
    elsewhere = f" (and {box.player.used_elsewhere} elsewhere before)" if box.player.used_elsewhere else ""
    return Check(
        used <= box.allowed,
        f"not over: {box.player.address} sent {theirs}{elsewhere} of {box.allowed:,} {measure} allowed in 24 hours",
    )


def _waits_stated(accounts: Accounts) -> Check:
    boxes = [box for box in accounts.now.boxes if box.queued]
    stated = [box for box in boxes if box.settled and is_stated(accounts.reasons.get(box.player.address))]
    return Check(
        stated == boxes,
        f"explained: {len(accounts.waiting)} messages wait in {len(boxes)} mailboxes, and {len(stated)} say for what",
    )


def _faults_fell(faults: Faults) -> Check:
    killed = faults.killed_in_handover in faults.settled
    return Check(
        killed and faults.flushed_with_queued > 0 and bool(faults.found),
        f"all of it under faults: a worker killed in a handover, {len(faults.settled)} unknown settled by decision and "
        f"{len(faults.found)} by what was found, Redis flushed with {faults.flushed_with_queued} messages queued",
    )


def _ended_cleanly(accounts: Accounts, ended: dict[str, int]) -> Check:
    leases = sum(box.in_turn for box in accounts.now.boxes)
    clean = leases == 0 and not any(ended.values())
    exits = ", ".join(f"{name} with exit {status}" for name, status in ended.items())
    return Check(clean, f"ended cleanly: {exits}; {leases} leases held")


# ── on screen ───────────────────────────────────────────────────────────────────────────────────────────────────────


def show_summary(console: Console, accounts: Accounts, verdicts: list[Check]) -> None:
    """Print it: both accounts by mailbox, why what waits waits, and the verdict on every promise."""
    console.print()
    console.rule("[bold]What we say, and what the servers' own ledgers say[/]", align="left", style="dim")
    console.print(_table(accounts))
    for address, reason in accounts.reasons.items():
        _print_reason(console, address, reason)
    _print_ids(console, accounts.ids)
    console.print()
    for verdict in verdicts:
        mark = Text("✓", "green") if verdict.held else Text("✗", "bold red")
        console.print(_hanging(mark, Text(verdict.sentence)))
    console.print()
    good = all(verdict.held for verdict in verdicts)
    console.print(
        "[bold green]OK[/]: the servers confirm it." if good else "[bold red]NOT OK[/]: what is marked ✗ did not hold."
    )


def _table(accounts: Accounts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("mailbox", no_wrap=True)
    for name in ("enqueued", "we say sent", "servers took", "twice", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    for box in accounts.now.boxes:
        taken = accounts.taken_from(box)
        times = Counter(map(message_of, taken))
        total = box.queued + box.handing_over + box.sent + box.unknown + box.failed
        twice = sum(each > 1 for each in times.values())
        table.add_row(
            box.player.address, *(f"{number:,}" for number in (total, box.sent, len(taken), twice, box.queued))
        )
    return table


def _print_reason(console: Console, address: str, reason: Explanation) -> None:
    console.print()
    console.print(Text(f"$ outtray explain --mailbox {address}", "yellow"))
    page = Table.grid(padding=(0, 2))
    page.add_column(style="dim", no_wrap=True)
    page.add_column(overflow="fold")
    for name, value in lines_of(reason):
        page.add_row(f"  {name}", Text(value))
    console.print(page)


def _print_ids(console: Console, ids: Ids) -> None:
    """The ids of one message by each kind of provider."""
    for kind, message in ids.examples:
        console.print()
        console.print(Text(f"$ outtray message show {message.id}", "yellow") + Text(f"   # by {kind}", "dim"))
        page = Table.grid(padding=(0, 2))
        page.add_column(style="dim", no_wrap=True)
        page.add_column(overflow="fold")
        for name, value in ids_of(message):
            page.add_row(f"  {name}", Text(value))
        console.print(page)


def _hanging(mark: Text, text: Text) -> Table:
    line = Table.grid(padding=(0, 1))
    line.add_column(width=1)
    line.add_column(overflow="fold")
    line.add_row(mark, text)
    return line


# ── what next ───────────────────────────────────────────────────────────────────────────────────────────────────────

NEXT = (
    ("outtray up", "start everything on this machine, and leave it running"),
    ("outtray mailbox add smtp you@example.com --host smtp.example.com", "your own mailbox; it asks for the password"),
    ("outtray mailbox test you@example.com", "connects and logs in, sends nothing"),
    (
        "echo 'It works.' | outtray send --mailbox you@example.com --to friend@example.com --subject Hello",
        "your first mail",
    ),
    ("outtray status --watch", "see it leave; `outtray explain ID` says of any message why it waits"),
)
"""What to type after the demo, and what it does. A test types them."""


def show_next(console: Console, program: str) -> None:
    """Say how to send one's own mail. `program` is how this installation's `outtray` is called from here."""
    console.print()
    console.rule("[bold]Next: your own mail[/]", align="left", style="dim")
    for command, what in NEXT:
        console.print(Text(f"  # {what}", "dim"))
        console.print(Text(f"  {command.replace('outtray ', program + ' ', 1)}"), soft_wrap=True)


def program(executable: Path, here: Path, on_path: str | None) -> str:
    """How `outtray` beside this interpreter is called: by name if the shell finds the same, else by its path."""
    beside = executable.parent / "outtray"
    if on_path is not None and Path(on_path).resolve() == beside.resolve():
        return "outtray"
    return str(beside.relative_to(here)) if beside.is_relative_to(here) else str(beside)
