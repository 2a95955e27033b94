"""The scenario: what goes wrong, in order, while 300 messages are on their way."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import redis

from outtray.wakes import redis_url
from outtray_sandbox.demo.cast import AT_ITS_LIMIT, BY_GMAIL, BY_GRAPH, CUT_SHORT, REVOKED, TROUBLED
from outtray_sandbox.demo.crew import Member
from outtray_sandbox.demo.decide import settle_unknown
from outtray_sandbox.demo.show import Show
from outtray_sandbox.demo.stage import messages
from outtray_sandbox.demo.watch import Now, all_alive, clock, open_handovers
from outtray_sandbox.google.errors import shape

WORKERS = 2
HELD_BACK = 40
"""Messages that come late: the last lines of the file are enqueued right before Redis is flushed."""
AFTER_FLUSH = 10
"""Messages that have to leave after the flush before anything else breaks."""
TROUBLE_SECONDS = 8.0
TROUBLE = "451 4.3.0 Temporary system problem. Try again later."
GMAIL_WAITS = timedelta(seconds=8)
"""How far away the time is that Gmail names when it refuses."""
ON_CAMERA = 1.5
"""Seconds for which a person is shown the open handover before the kill, and the unknown before the decision."""


@dataclass(slots=True)
class Faults:
    """What really fell, for the summary."""

    flushed_with_queued: int = 0
    killed_in_handover: UUID | None = None
    settled: list[UUID] = field(default_factory=list)
    gmail_named: datetime | None = None
    """The time that Gmail named, and the one until which the mailbox was parked then."""
    gmail_parked: datetime | None = None
    found: list[UUID] = field(default_factory=list)
    """Messages that were unknown, and that Outtray itself looked for and found."""


def perform(show: Show) -> Faults:
    """Play all of it. Afterwards nothing more happens by itself: all is sent, or waits for hours or for its owner."""
    faults = Faults()
    _enqueue_first(show)
    _start_processes(show)
    show.until(lambda now: now.count("sent") >= 10, "the first ten were sent")
    show.pause(2)
    _begin_trouble(show)
    _refuse_until(show, faults)
    show.pause(3)
    _revoke(show)
    show.until(lambda now: now.of(REVOKED).status == "reconnect", "the revoked mailbox was found out")
    show.until(lambda now: now.of(AT_ITS_LIMIT).at_its_limit, "a mailbox reached its daily limit")
    _flush_redis(show, faults)
    _answer_504(show, faults)
    show.until(lambda _: show.has_recovered(TROUBLED), "the troubled server's mailbox sent again")
    _kill_in_a_handover(show, faults)
    _finish(show, faults)
    faults.found = show.found
    return faults


# ── beginning ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _enqueue_first(show: Show) -> None:
    first = messages()[:-HELD_BACK]
    show.stage.client.enqueue_many(first)
    show.say(f"{len(first)} messages are enqueued: durable in PostgreSQL, whatever happens from here on")


def _start_processes(show: Show) -> None:
    crew = show.stage.crew
    crew.start("dispatcher")
    for _ in range(WORKERS):
        crew.start("worker")
    show.say(f"a dispatcher and {WORKERS} workers start, as processes of their own")
    show.until(lambda _: all_alive(show.stage), "every process had said that it is alive")
    show.say("they are up, and mail leaves")


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _begin_trouble(show: Show) -> None:
    server = show.stage.server_of(TROUBLED)
    server.add_rule(stage="mail", reply=TROUBLE, seconds=TROUBLE_SECONDS)
    show.say(f"the server of {TROUBLED.address} answers 451 for {TROUBLE_SECONDS:.0f} s", "fault")


def _refuse_until(show: Show, faults: Faults) -> None:
    """Gmail refuses one handover, in the shape of its own 429: the time to wait for stands in the text alone."""
    named = datetime.now(UTC).replace(microsecond=0) + GMAIL_WAITS
    text = f"User-rate limit exceeded.  Retry after {named:%Y-%m-%dT%H:%M:%S}.000Z"
    body = json.loads(json.dumps(shape(429, "userRateLimitExceeded", text, "usageLimits")))
    show.stage.server_of(BY_GMAIL).add_rule(stage="drafts.send", status=429, body=body, times=1)
    show.say(
        f"Gmail refuses a handover of {BY_GMAIL.address} with 429: not before {named.astimezone():%H:%M:%S}", "fault"
    )
    parked = show.until(lambda now: now.of(BY_GMAIL).parked_until is not None, "Gmail's refusal parked its mailbox")
    faults.gmail_named, faults.gmail_parked = named, parked.of(BY_GMAIL).parked_until


def _answer_504(show: Show, faults: Faults) -> None:
    """Graph takes a mail, and its gateway gives up waiting for the answer."""
    late = {"error": {"code": "UnknownError", "message": ""}}
    show.stage.server_of(BY_GRAPH).add_rule(stage="messages.send", status=504, take=True, body=late, times=1)
    show.say(f"Graph takes the next mail of {BY_GRAPH.address}, and answers 504", "fault")
    show.until(lambda _: bool(show.found), "the mail behind the 504 was found in Sent Items")


def _revoke(show: Show) -> None:
    show.stage.server_of(REVOKED).do("revoke", user=REVOKED.address)
    show.say(f"the password of {REVOKED.address} is revoked at its provider", "fault")


def _flush_redis(show: Show, faults: Faults) -> None:
    """Redis loses everything a moment after 40 more messages were enqueued: their wakes, the rounds, the pace."""
    late = messages()[-HELD_BACK:]
    show.stage.client.enqueue_many(late)
    with redis.Redis.from_url(redis_url(show.stage.settings)) as connection:
        connection.flushall()
    now, flushed = show.look(), show.view.elapsed
    faults.flushed_with_queued = now.count("queued")
    show.say(
        f"{len(late)} more messages are enqueued, and Redis is flushed right behind them: wakes, rounds and pace are "
        f"gone, with {faults.flushed_with_queued} messages queued",
        "fault",
    )
    enough = now.count("sent") + AFTER_FLUSH
    show.until(lambda now: now.count("sent") >= enough, "mail left after the flush")
    show.say(
        f"mail goes on leaving: {AFTER_FLUSH} sent within {show.view.elapsed - flushed:.0f} s of the flush", "good"
    )


def _kill_in_a_handover(show: Show, faults: Faults) -> None:
    """A worker dies between the last byte of a mail and the server's answer to it."""
    message, member = _held_handover(show)
    show.stage.crew.kill(member)
    show.stage.server_of(CUT_SHORT).forget()
    faults.killed_in_handover = message
    show.say(f"{member} is killed (kill -9) in the middle of that handover", "fault")
    show.say(f"{show.stage.crew.start('worker')} is started in its place")
    show.until(lambda now: now.undecided > 0, "the message that was cut short was unknown")


def _held_handover(show: Show) -> tuple[UUID, Member]:
    """Wait until a server keeps back its answer to a mail, and say which worker waits for it."""
    server, since = show.stage.server_of(CUT_SHORT), clock(show.stage)
    takes = show.chance.random() < 0.5  # whether the mail was taken: nobody but the server will know
    server.add_rule(stage="dot", user=CUT_SHORT.address, silent=True, take=takes)
    found: list[tuple[UUID, Member]] = []

    def is_held(_: Now) -> bool:
        named = [
            (message, show.stage.crew.named(held)) for message, held in open_handovers(show.stage, CUT_SHORT, since)
        ]
        found[:] = [(message, member) for message, member in named if member is not None]
        return bool(found)

    show.until(is_held, "a handover was open")
    message, member = found[0]
    show.say(f"a handover of {CUT_SHORT.address} is open: the mail is with the server, {member} waits for its answer")
    show.pause(ON_CAMERA)
    return message, member


# ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _finish(show: Show, faults: Faults) -> None:
    """Decide about what is unknown and cannot be looked for, as it comes up, until nothing more happens."""
    while not show.until(lambda now: now.settled or now.undecided > 0, "all was sent or waits for good").settled:
        show.pause(ON_CAMERA)
        for unknown in show.stage.client.list(state="unknown").items:
            player = show.stage.player_of(unknown.mailbox_id)
            if player is None or not player.can_be_looked_into:
                settle_unknown(show, unknown)
                faults.settled.append(unknown.id)
