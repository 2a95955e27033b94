"""Sequences by the real providers: what follows a mail arrives in its conversation, whatever the scopes let us see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes
from email.message import Message as Mime
from pathlib import Path
from typing import Any

import pytest
from gmail_rig import COMPOSE, METADATA, SEND, GmailRig
from graph_rig import SCOPES, GraphRig
from provider_rigs import USER

from databases import Database
from inside import inside
from outtray import Message
from outtray_sandbox.google.mailbox import Stored
from outtray_worker.providers import Account, Session

HOUR = timedelta(hours=1)
GMAIL = {
    "gmail draft": (COMPOSE, METADATA),
    "gmail send, read back": (SEND, METADATA),
    "gmail send": (SEND,),
}
GRAPH = {"graph draft": "draft", "graph sendMail": "sendMail"}


class WithTokens:
    """The rig's provider; its mailboxes have the rig's tokens."""

    def __init__(self, rig: Any) -> None:
        self.name = rig.provider.name
        self._rig = rig

    def open(self, account: Account) -> Session:
        return self._rig.provider.open(replace(account, tokens=self._rig.tokens))


@contextmanager
def rig_of(route: str, folder: Path) -> Iterator[Any]:
    made = GmailRig(folder, GMAIL[route], "uvloop") if route in GMAIL else GraphRig(folder, GRAPH[route])
    with made as rig:
        yield rig


def add_mailbox(client: Any, route: str) -> Any:
    kind = "google" if route in GMAIL else "microsoft"
    scopes = list(GMAIL[route]) if route in GMAIL else SCOPES[GRAPH[route]].split()
    client.provider_apps.add(kind, kind, client_id="client", secret="secret")
    add = getattr(client.mailboxes, f"add_{kind}")
    return add(USER, refresh_token="unused", scopes=scopes, provider_app=kind).id


@pytest.mark.parametrize("route", [*GMAIL, *GRAPH])
def test_a_follower_is_sent_into_the_conversation_of_what_it_follows(
    route: str, database: Database, tmp_path: Path
) -> None:
    with rig_of(route, tmp_path) as rig:

        async def scene() -> None:
            async with inside(database.settings, WithTokens(rig)) as office:
                box = add_mailbox(office.client, route)
                intro = {"to": "ann@first.example", "subject": "Hello", "text": "First.", "idempotency_key": "intro"}
                first = office.client.enqueue(Message(mailbox=box, **intro)).id
                then = office.client.enqueue(
                    Message(mailbox=box, text="Second.", follows="intro", after=HOUR, thread=True)
                ).id
                await office.until_idle()
                assert (await office.message(first))["state"] == "sent"
                assert (await office.message(then))["state"] == "queued"
                await office.later(HOUR + timedelta(minutes=1))
                await office.until_idle()
                sent, answer = [await office.message(each) for each in (first, then)]
                assert answer["state"] == "sent", answer["reason"]
                CHECKS[route](rig, sent, answer)

        rig.run(scene())


# ── what arrived ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_back_at_gmail(rig: GmailRig, sent: dict[str, Any], answer: dict[str, Any]) -> None:
    """One thread, by all three of what Gmail asks for: thread id, headers and subject."""
    first, second = both_at_gmail(rig, sent, answer)
    assert second.thread_id == first.thread_id == sent["conversation_id"] == answer["conversation_id"]
    assert sent["rfc_message_id"] == first.rfc_message_id, "as Gmail named it, read back"


def unseen_at_gmail(rig: GmailRig, sent: dict[str, Any], answer: dict[str, Any]) -> None:
    """Gmail names the mail anew and `gmail.send` cannot read how: the headers name an id that nobody received."""
    first, second = both_at_gmail(rig, sent, answer)
    assert first.rfc_message_id != sent["rfc_message_id"]
    assert second.thread_id == answer["conversation_id"] != first.thread_id, "docs/sequences.md says so"


def both_at_gmail(rig: GmailRig, sent: dict[str, Any], answer: dict[str, Any]) -> tuple[Stored, Stored]:
    stored = rig.house.users[USER].mailbox.messages
    first, second = stored[sent["provider_id"]], stored[answer["provider_id"]]
    assert (second.header("Subject"), second.header("To")) == ("Re: Hello", "ann@first.example")
    assert second.header("In-Reply-To") == sent["rfc_message_id"]
    return first, second


def by_draft_at_graph(rig: GraphRig, sent: dict[str, Any], answer: dict[str, Any]) -> None:
    """Made by createReply: Exchange keeps the conversation."""
    assert answer["conversation_id"] == sent["conversation_id"] is not None
    last = rig.house.mailbox(USER).items[-1].properties  # type: ignore[union-attr]
    assert last["conversationId"] == sent["conversation_id"]
    assert last["subject"] == "Re: Hello"
    assert any(each["stage"] == "answer" for each in rig.requests())


def by_headers_at_graph(rig: GraphRig, sent: dict[str, Any], answer: dict[str, Any]) -> None:
    """Nothing can be seen but what we sent: the headers name our Message-ID."""
    raw: Mime = message_from_bytes(rig.house.mailbox(USER).items[-1].mime or b"")  # type: ignore[union-attr]
    assert (raw["Subject"], raw["To"]) == ("Re: Hello", "ann@first.example")
    assert raw["In-Reply-To"] == sent["rfc_message_id"]
    assert raw["References"].split() == [sent["rfc_message_id"]]


CHECKS = {
    "gmail draft": read_back_at_gmail,
    "gmail send, read back": read_back_at_gmail,
    "gmail send": unseen_at_gmail,
    "graph draft": by_draft_at_graph,
    "graph sendMail": by_headers_at_graph,
}
