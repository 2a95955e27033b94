"""The demo's summary must be able to say no, and its picture must fit the terminals that people have."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
import typer
from rich.console import Console

from outtray.cli.application import build
from outtray.explain import Explanation
from outtray_sandbox.accepted import Accepted
from outtray_sandbox.demo.cast import AT_ITS_LIMIT, BY_GRAPH, HOSTS, PLAYERS, REVOKED, Player
from outtray_sandbox.demo.ids import Ids
from outtray_sandbox.demo.live import picture
from outtray_sandbox.demo.scenario import HELD_BACK, Faults
from outtray_sandbox.demo.stage import messages
from outtray_sandbox.demo.summary import NEXT, Accounts, checks, program
from outtray_sandbox.demo.watch import BoxNow, Now
from outtray_schema.message import parse_message
from outtray_schema.plans import effective_limits

ENDED = {"dispatcher": 0, "worker 2": 0}
NAMED = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
THREE = ("provider's", "<delivered@x.example>", "conversation")


def box(player: Player, **fields) -> BoxNow:
    daily = effective_limits(player.plan, {}, "smtp").daily
    measure, allowed = next(iter(daily.items()))
    plain = dict(
        player=player, status="active", status_reason=None, queued=0, handing_over=0, sent=0, unknown=0, failed=0,
        worker=None, in_turn=False, parked_reason=None, parked_until=None, parked_for=timedelta(0), used=0,
        allowed=allowed, measure=measure, per_minute=None,
    )  # fmt: skip
    return BoxNow(**(plain | fields))


def taken(message_id: str, player: Player) -> Accepted:
    return Accepted(
        f"<{message_id}@x.example>", player.address, player.address, ("a@b.example",), "", 1, 1000.0, 1.0, "s", "250"
    )


def good_accounts() -> Accounts:
    """25 sent by a mailbox that had used 475 of 500, everything else of the file waiting."""
    ids = [str(number) for number in range(len(messages()))]
    boxes = [box(player) for player in PLAYERS]
    boxes[0] = box(AT_ITS_LIMIT, sent=25, used=500, queued=len(ids) - 25, parked_reason="quota: messages")
    return Accounts(
        now=Now(tuple(boxes)),
        sent=frozenset(ids[:25]),
        waiting=frozenset(ids[25:]),
        others=0,
        taken=tuple(taken(message_id, AT_ITS_LIMIT) for message_id in ids[:25]),
        reasons={AT_ITS_LIMIT.address: Explanation("active", "quota", "its limit is reached", datetime.now(UTC))},
        ids=Ids(frozenset({THREE}), frozenset({THREE}), ()),
    )


def good_faults() -> Faults:
    message = uuid4()
    return Faults(
        flushed_with_queued=40, killed_in_handover=message, settled=[message], gmail_named=NAMED, gmail_parked=NAMED,
        found=[uuid4()],
    )  # fmt: skip


def broken(accounts: Accounts, faults: Faults | None = None, ended: dict[str, int] = ENDED) -> list[str]:
    """The first words of every promise that did not hold."""
    verdicts = checks(accounts, faults or good_faults(), ended)
    return [check.sentence.partition(":")[0] for check in verdicts if not check.held]


def test_a_demo_in_which_all_went_well_is_ok():
    assert broken(good_accounts()) == []


def test_a_mail_that_a_server_took_twice_is_not_ok():
    accounts = good_accounts()
    assert broken(replace(accounts, taken=(*accounts.taken, accounts.taken[0]))) == ["once each", "not over"]


def test_a_mail_that_we_call_sent_and_no_server_took_is_not_ok():
    accounts = good_accounts()
    assert broken(replace(accounts, taken=accounts.taken[1:])) == ["the same ones"]


def test_a_mail_that_a_server_took_and_we_do_not_call_sent_is_not_ok():
    accounts = good_accounts()
    one = next(iter(accounts.sent))
    moved = replace(accounts, sent=accounts.sent - {one}, waiting=accounts.waiting | {one})
    assert broken(moved) == ["the same ones"]


def test_a_missing_message_is_not_ok():
    accounts = good_accounts()
    assert broken(replace(accounts, waiting=frozenset(sorted(accounts.waiting)[1:]))) == ["none lost"]


def test_one_mail_over_the_daily_limit_is_not_ok():
    accounts = good_accounts()
    more = next(iter(accounts.waiting))
    over = replace(
        accounts, sent=accounts.sent | {more}, waiting=accounts.waiting - {more},
        taken=(*accounts.taken, taken(more, AT_ITS_LIMIT)),
    )  # fmt: skip
    assert broken(over) == ["not over"]


def test_a_message_that_waits_without_a_reason_is_not_ok():
    accounts = good_accounts()
    idle = Now((replace(accounts.now.boxes[0], parked_reason=None), *accounts.now.boxes[1:]))
    assert broken(replace(accounts, now=idle)) == ["explained"]
    assert broken(replace(accounts, reasons={})) == ["explained"]


def test_an_explanation_that_names_neither_a_time_nor_a_person_is_not_ok():
    vague = {AT_ITS_LIMIT.address: Explanation("active", "waits", "it waits")}
    assert broken(replace(good_accounts(), reasons=vague)) == ["explained"]


def test_a_kill_that_did_not_fall_in_a_handover_is_not_ok():
    assert broken(good_accounts(), replace(good_faults(), killed_in_handover=None)) == ["all of it under faults"]


def test_an_unknown_message_that_nobody_found_is_not_ok():
    assert broken(good_accounts(), replace(good_faults(), found=[])) == ["all of it under faults"]


@pytest.mark.parametrize("parked", [None, NAMED - timedelta(seconds=1), NAMED + timedelta(minutes=1)])
def test_a_mailbox_that_waits_shorter_or_longer_than_its_provider_asked_is_not_ok(parked: datetime | None):
    assert broken(good_accounts(), replace(good_faults(), gmail_parked=parked)) == ["as long as asked"]


@pytest.mark.parametrize("ours", [set(), {("another", *THREE[1:])}, {(*THREE[:2], None)}])
def test_an_id_that_is_missing_or_another_than_the_providers_is_not_ok(ours: set):
    ids = Ids(frozenset(ours), frozenset(ours) if (*THREE[:2], None) in ours else frozenset({THREE}), ())
    assert broken(replace(good_accounts(), ids=ids)) == ["the three ids"]


def test_a_process_that_had_to_be_killed_at_the_end_is_not_ok():
    assert broken(good_accounts(), ended={"dispatcher": 0, "worker 2": -9}) == ["ended cleanly"]


# ── what is seen ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture_fits_an_80_by_24_and_a_wide_terminal(width: int):
    reason = "the server refuses the user name, password or token (smtp.example.com:587 said 535 5.7.8)"
    numbers = dict(queued=100, handing_over=1, sent=100)
    boxes = [box(player, **numbers, used=9_999) for player in PLAYERS]
    boxes[0] = box(AT_ITS_LIMIT, **numbers, used=500, parked_reason="quota: messages", parked_until=datetime.now(UTC))
    boxes[1] = box(REVOKED, **numbers, used=500, status="reconnect", status_reason=reason)
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(picture(Now(tuple(boxes)), 59.0, width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 22, "the last events stay visible above it"
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), "nothing is cut off"


# ── what is shipped ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_shipped_message_passes_the_door_and_has_a_key_of_its_own():
    parsed = [parse_message(message) for message in messages()]
    assert len(parsed) == 300
    assert len({message.idempotency_key for message in parsed}) == 300
    assert {message.mailbox for message in parsed} == {player.address for player in PLAYERS}


def test_the_mailbox_at_its_limit_has_more_messages_than_its_limit_has_room():
    first = [message for message in messages()[:-HELD_BACK] if message["mailbox"] == AT_ITS_LIMIT.address]
    room = effective_limits(AT_ITS_LIMIT.plan, {}, "smtp").daily["messages"] - AT_ITS_LIMIT.used_elsewhere
    assert 0 < room < len(first)


def test_there_is_mail_left_for_the_504_whatever_left_before():
    assert any(message["mailbox"] == BY_GRAPH.address for message in messages()[-HELD_BACK:])


def test_every_mailbox_has_its_server():
    assert {player.host for player in PLAYERS} == {host.name for host in HOSTS}


@pytest.mark.parametrize("command", [command for command, _ in NEXT])
def test_what_the_demo_says_to_type_next_is_understood_by_the_command_line(command: str):
    name, *words = shlex.split(command.rpartition("| ")[2])
    node = typer.main.get_command(build())
    context = node.make_context(name, list(words))
    while hasattr(node, "resolve_command"):
        name, node, words = node.resolve_command(context, words)
        context = node.make_context(name, list(words), parent=context)
    assert node.callback is not None


def test_the_program_is_named_as_the_shell_would_find_it(tmp_path: Path):
    python = tmp_path / ".venv" / "bin" / "python"
    assert program(python, tmp_path, str(python.parent / "outtray")) == "outtray"
    assert program(python, tmp_path, None) == ".venv/bin/outtray"
    assert program(python, tmp_path / "elsewhere", "/usr/bin/outtray") == str(python.parent / "outtray")
