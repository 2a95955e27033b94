"""The draft of a message that has ended is taken away, by its id or by our key, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gmail_rig import COMPOSE, METADATA, SEND, GmailRig
from graph_mails import frozen
from graph_rig import GraphRig
from provider_rigs import CANARIES, RECIPIENTS, USER, new_mail

from outtray_worker.providers import Draft, Mail, Removed, Remover, Trace

Rig = GmailRig | GraphRig


@pytest.fixture(params=["gmail", "graph"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made: Rig = GmailRig(tmp_path, (COMPOSE, METADATA)) if request.param == "gmail" else GraphRig(tmp_path)
    with made as rig:
        yield rig


def mail_for(rig: Rig) -> Mail:
    return new_mail() if isinstance(rig, GmailRig) else frozen()


def drafts_of(rig: Rig) -> int:
    if isinstance(rig, GmailRig):
        return len(rig.house.users[USER].mailbox.drafts)
    return sum(item.folder == "drafts" for item in rig.house.mailboxes[USER].items)


def make(rig: Rig, mail: Mail) -> Draft:
    async def prepared() -> Draft:
        session = rig.provider.open(rig.account)
        made = await session.prepare(mail)
        draft: Draft = made.draft
        return draft

    return rig.run(prepared())


def remove(rig: Rig, mail: Mail, draft: Draft | None, account: Any = None) -> Removed:
    trace = Trace(mail.message_id, mail.rfc_message_id, datetime.now(UTC), RECIPIENTS, draft)

    async def once() -> Removed:
        session = rig.provider.open(account or rig.account)
        assert isinstance(session, Remover)
        return await session.remove_draft(trace)

    removed = rig.run(once())
    assert [canary for canary in CANARIES if canary in repr(removed)] == []
    return removed


@pytest.mark.parametrize("named", [True, False], ids=["by its id", "by our key"])
def test_the_draft_is_removed_and_no_other(rig: Rig, named: bool) -> None:
    mail = mail_for(rig)
    draft, _ = make(rig, mail), make(rig, mail_for(rig))
    assert remove(rig, mail, draft if named else None) == Removed("deleted")
    assert drafts_of(rig) == 1
    again = remove(rig, mail, draft if named else None)
    assert again.kind in (("gone", "deleted") if named else ("gone",)), "repeatable"
    assert drafts_of(rig) == 1


def test_a_refusal_and_a_silence_say_that_it_may_be_there_yet(rig: Rig) -> None:
    mail = mail_for(rig)
    draft = make(rig, mail)
    stage = "drafts.delete" if isinstance(rig, GmailRig) else "messages.delete"
    for rule in ({"status": 503}, {"drop": "before"}):
        rig.server.add_rule(stage=stage, times=3, **rule)
        assert remove(rig, mail, draft).kind == "failed"
        rig.server.forget()
    assert drafts_of(rig) == 1 and remove(rig, mail, draft).kind == "deleted"


def test_without_the_permission_nothing_is_tried(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (COMPOSE, METADATA)) as rig:
        mail = new_mail()
        draft = make(rig, mail)
        removed = remove(rig, mail, draft, replace(rig.account, scopes=frozenset((SEND,))))
        assert removed.kind == "failed" and removed.outcome is not None and drafts_of(rig) == 1
