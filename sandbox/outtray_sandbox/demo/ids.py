"""The three ids of what left, beside what the providers themselves call it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from outtray.find import MessageView
from outtray_sandbox.demo.cast import BY_GMAIL, BY_GRAPH, CUT_SHORT, PLAYERS
from outtray_sandbox.demo.stage import Stage
from outtray_sandbox.google import GoogleServer
from outtray_sandbox.microsoft import MicrosoftServer

Three = tuple[str | None, str | None, str | None]
"""Provider's id, Message-ID as delivered, conversation."""

# Reads the ids of everything that left by an API; locks nothing.
IDS = """
SELECT m.provider_id, m.rfc_message_id, m.conversation_id FROM outtray.message m
JOIN outtray.mailbox b ON b.id = m.mailbox_id WHERE m.state = 'sent' AND b.provider IN ('gmail', 'microsoft')
"""
NAMES: Mapping[type, tuple[str, str, str]] = {
    GoogleServer: ("message", "Message-ID", "conversation"),
    MicrosoftServer: ("id", "internetMessageId", "conversationId"),
}
"""What each API calls the three."""


@dataclass(frozen=True, slots=True)
class Ids:
    """`ours` and `theirs` are all of both APIs; `examples` one message for each kind of provider."""

    ours: frozenset[Three]
    theirs: frozenset[Three]
    examples: tuple[tuple[str, MessageView], ...]


def read_ids(stage: Stage) -> Ids:
    """Ours from PostgreSQL, theirs from what the servers file in the mailboxes."""
    rows = stage.database.execute(IDS).fetchall()
    ours = frozenset((row["provider_id"], row["rfc_message_id"], row["conversation_id"]) for row in rows)
    return Ids(ours, frozenset(_theirs(stage)), tuple(_examples(stage)))


def _theirs(stage: Stage) -> Iterator[Three]:
    for server in stage.servers.values():
        names = NAMES.get(type(server))
        if names is not None and isinstance(server, GoogleServer | MicrosoftServer):
            for mail in list(server.house.sent):
                yield mail.ids[names[0]], mail.ids[names[1]], mail.ids[names[2]]


def _examples(stage: Stage) -> Iterator[tuple[str, MessageView]]:
    kinds = {BY_GMAIL: "Gmail", BY_GRAPH: "Graph", CUT_SHORT: "SMTP"}
    for player in (each for each in PLAYERS if each in kinds):
        page = stage.client.list(mailbox=stage.boxes[player.address].id, state="sent", limit=1)
        for message in page.items:
            yield kinds[player], message


def lines_of(message: MessageView) -> Iterator[tuple[str, str]]:
    """Name and value of each id; of one that cannot be had, why."""
    for name in ("provider_id", "rfc_message_id", "conversation_id"):
        value: Any = getattr(message, name)
        yield name, str(value) if value else f"none: {message.missing_ids.get(name, 'not told')}"
