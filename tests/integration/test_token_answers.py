"""Every answer that a token endpoint is known to give, through a real answer: who waits, who must act, who is told."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from datetime import timedelta
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from outtray_schema import bindings
from outtray_schema.outcome import Held, Parked
from outtray_worker.auth.answers import ROWS
from outtray_worker.auth.tokens import MailboxTokens
from outtray_worker.providers import NoToken
from pems import certificate
from token_server import SECRET, Answer
from tokens import GOOGLE_SEND, Box, Tokens, outcome_of, tokens
from world import run


def google(error: str, **more: Any) -> Answer:
    return Answer(400, {"error": error, **more})


def entra(error: str, number: int, status: int = 400, **more: Any) -> Answer:
    return Answer(status, {
        "error": error, "error_description": f"AADSTS{number}: Something about CANARY@example.org. Trace ID: x",
        "error_codes": [number], "correlation_id": "35482162-562c-4c65-bbe9-8c99b61b2df6", **more,
    })  # fmt: skip


# What is answered, to which kind of mailbox, for each row. `person`: google and microsoft; `app`: their own tokens.
ANSWERS: dict[str, list[tuple[str, Answer]]] = {
    "session-policy": [("google", google("invalid_grant", error_subtype="invalid_rapt"))],
    "policy-enforced": [("google", google("admin_policy_enforced")),
                        ("google", Answer(403, {"error": "org_internal"}))],
    "consent-ended": [("google", google("invalid_grant", error_description="Token has been expired or revoked."))],
    "consent-expired": [("microsoft", entra("invalid_grant", 700082)), ("microsoft", entra("invalid_grant", 70008))],
    "consent-revoked": [("microsoft", entra("invalid_grant", 50173))],
    "account-disabled": [("microsoft", entra("invalid_grant", 50057))],
    "account-gone": [("microsoft", entra("invalid_grant", 50034))],
    "consent-missing": [("microsoft", entra("invalid_grant", 65001, suberror="consent_required"))],
    "second-factor": [("microsoft", entra("interaction_required", 50076)),
                      ("microsoft", entra("invalid_grant", 50079))],
    "conditional-access": [("microsoft", entra("interaction_required", 53003))],
    "consent-refused": [("microsoft", entra("invalid_grant", 12345))],
    "interaction-required": [("microsoft", entra("login_required", 12345))],
    "app-secret-expired": [("microsoft", entra("invalid_client", 7000222, 401)),
                           ("microsoft_app", entra("invalid_client", 7000222, 401))],
    "app-secret-wrong": [("microsoft", entra("invalid_client", 7000215, 401))],
    "app-refused": [("microsoft_app", entra("invalid_client", 700027, 401))],
    "client-refused": [("google", Answer(401, {"error": "invalid_client"}))],
    "client-gone": [("google", Answer(401, {"error": "deleted_client"})), ("google", google("disabled_client"))],
    "client-unauthorized": [("google", Answer(401, {"error": "unauthorized_client"}))],
    "account-key-refused": [("google_service_account",
                             google("invalid_grant", error_description="Invalid JWT Signature."))],
    "not-delegated": [("google_service_account", Answer(401, {"error": "unauthorized_client"}))],
    "not-installed": [("microsoft", entra("unauthorized_client", 700016))],
    "resource-missing": [("microsoft", entra("invalid_resource", 500011))],
    "app-grant-refused": [("microsoft_app", entra("invalid_grant", 53003))],
    "subject-unknown": [("google_service_account",
                         google("invalid_grant", error_description="Invalid email or User ID"))],
    "scope-refused": [("google", google("invalid_scope")), ("microsoft", entra("invalid_scope", 70011))],
    "tenant-unknown": [("microsoft", entra("invalid_tenant", 90002))],
    "request-refused": [("google", google("invalid_request")), ("microsoft", entra("invalid_request", 900144))],
    "too-many": [("google", Answer(429, {"error": "rate_limited"}, {"Retry-After": "77"})),
                 ("microsoft", Answer(429, {}, {"Retry-After": "77"}))],
    "unavailable": [("google", google("internal_failure")),
                    ("microsoft", entra("temporarily_unavailable", 90033, 503))],
    "server-trouble": [("google", Answer(500, "<html>CANARY")), ("microsoft", Answer(502, "CANARY"))],
    "unknown-refusal": [("google", google("never_heard_of")), ("microsoft", Answer(418, "CANARY"))],
    "unknown-answer": [("google", Answer(200, "<html>CANARY portal")),
                       ("microsoft", Answer(302, "", {"Location": "x"}))],
    "no-answer-closed": [("google", Answer(drop=True)), ("microsoft", Answer(drop=True))],
    "no-answer-timeout": [("google", Answer(late=1.5)), ("microsoft", Answer(late=1.5))],
}  # fmt: skip

CASES = [
    pytest.param(row, kind, answer, id=f"{row}-{kind}-{number}")
    for row, answers in ANSWERS.items()
    for number, (kind, answer) in enumerate(answers)
]


def service_account() -> str:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return json.dumps({"client_email": "robot@project.iam.example", "private_key": pem.decode(), "token_uri": "x"})


async def mailbox(t: Tokens, kind: str, person: str = "ann") -> Box:
    """A mailbox with this kind of credentials, and its OAuth client."""
    if kind == "google":
        return await t.google_box(person)
    if kind == "google_service_account":
        await t.app("robot", "google", kind="service_account", secret=service_account())
        return await t.mailbox("robot", {"kind": kind, "subject": "ann@example.org"}, [GOOGLE_SEND])
    await t.app("entra", "microsoft", kind="oauth" if kind == "microsoft" else "client_credentials")
    refresh_token = (
        {"refresh_token": t.server.add_person(person)} if kind == "microsoft" else {"subject": "a@b.example"}
    )
    return await t.mailbox("entra", {"kind": kind, **refresh_token}, ["Mail.Send"], provider="microsoft")


def test_every_row_is_driven_through_an_answer():
    assert {row.id for row in ROWS} <= set(ANSWERS)
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert all(row.source and row.as_of.startswith("2026-") for row in ROWS)


@pytest.mark.parametrize(("row", "kind", "answer"), CASES)
def test_an_answer_of_the_token_endpoint_becomes_what_its_row_says(database, caplog, row, kind, answer):
    async def test() -> None:
        async with tokens(database) as t:
            box = await mailbox(t, kind)
            t.server.say(answer)
            auth = await t.worker(token_timeout=timedelta(seconds=0.8), token_lease=timedelta(seconds=2))
            outcome = await outcome_of(MailboxTokens(auth, box))
            assert outcome.evidence["rule"] in (row, "app-refused")
            becomes = next((each.becomes for each in ROWS if each.id == row), "wait")
            await CHECKS[becomes](t, auth, box, outcome)
            assert row.startswith("unknown") == bool(t.notes)
            seen = repr(outcome) + str(t.notes) + caplog.text + await everything(t)
            for secret in ("CANARY", SECRET, *(token for each in t.server.people.values() for token in each.chain)):
                assert secret not in seen

    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logs:
        run(test())
    assert "CANARY" not in str(logs) and SECRET not in str(logs)


async def everything(t: Tokens) -> str:
    tables = ("event", "journal", "provider_app", "token", "mailbox", "consent")
    return str([await t.w.rows(f"SELECT x::text FROM outtray.{table} AS x") for table in tables])


async def is_reconnect(t: Tokens, auth: Any, box: Box, outcome: Any) -> None:
    assert isinstance(outcome, Held) and outcome.status == "reconnect"


async def is_app(t: Tokens, auth: Any, box: Box, outcome: Any) -> None:
    assert isinstance(outcome, Parked) and outcome.scope == "app"
    (app,) = await t.w.rows("SELECT * FROM outtray.provider_app WHERE status = 'refused'")
    assert app["status_reason"] in outcome.reason
    asked = len(t.server.requests)
    again = await outcome_of(MailboxTokens(auth, box))
    assert isinstance(again, Parked) and len(t.server.requests) == asked, "nobody asks in vain"
    assert [row["kind"] for row in await t.w.rows("SELECT kind FROM outtray.event")] == ["provider_app.refused"]


async def is_tenant(t: Tokens, auth: Any, box: Box, outcome: Any) -> None:
    assert isinstance(outcome, Parked) and (outcome.scope, outcome.after) == ("tenant", timedelta(hours=1))
    assert not await t.w.rows("SELECT FROM outtray.provider_app WHERE status = 'refused'")


async def is_bug(t: Tokens, auth: Any, box: Box, outcome: Any) -> None:
    assert isinstance(outcome, Parked) and outcome.scope == "app"
    assert not await t.w.rows("SELECT FROM outtray.provider_app WHERE status = 'refused'"), "others are not stopped"


async def is_wait(t: Tokens, auth: Any, box: Box, outcome: Any) -> None:
    assert isinstance(outcome, Parked) and outcome.scope == "connection"
    wished = timedelta(seconds=77) if outcome.evidence["rule"] == "too-many" else None
    assert outcome.after == wished
    assert len(t.server.requests) == 1, "neither library sends it again by itself"
    assert await MailboxTokens(auth, box).access(), "it is asked anew, not answered from memory"


CHECKS = {"reconnect": is_reconnect, "app": is_app, "tenant": is_tenant, "bug": is_bug, "wait": is_wait}


# ── what a person sees ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["google", "microsoft"])
def test_a_consent_withdrawn_for_one_scope_says_which_one(database, kind):
    async def test() -> None:
        async with tokens(database) as t:
            box = await mailbox(t, kind)
            kept, lost = (
                (GOOGLE_SEND, GOOGLE_SEND.replace("send", "metadata"))
                if kind == "google"
                else ("Mail.Send", "Mail.ReadWrite")
            )
            await t.w.db.execute("UPDATE outtray.mailbox SET scopes = %s", [[kept, lost]])
            t.server.say(Answer(200, {"access_token": "x", "expires_in": 3600, "scope": f"openid {kept}"}))
            outcome = await outcome_of(MailboxTokens(await t.worker(), box))
            assert isinstance(outcome, Held)
            assert f"consent for {lost} was withdrawn" in outcome.reason

    run(test())


def test_a_refusal_is_not_believed_if_somebody_rotated_meanwhile(database):
    """Two refreshes from one refresh token at a strict provider: only the first is answered with a token."""

    async def test() -> None:
        async with tokens(database, rotate=True, strict=True, delay=lambda: 0.3) as t:
            box = await t.google_box()
            first = asyncio.create_task(MailboxTokens(await t.worker(), Box(box.id)).access())
            while not t.server.open():
                await asyncio.sleep(0.01)
            await t.w.db.execute("UPDATE outtray.token SET refreshing_until = NULL")  # as if its holder were dead
            second = asyncio.create_task(MailboxTokens(await t.worker(), Box(box.id)).access())
            assert await first == await second

    run(test())


def test_a_challenge_reaches_the_token_endpoint_with_our_capabilities(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await mailbox(t, "microsoft")
            mine = MailboxTokens(await t.worker(), box)
            old = await mine.access()
            assert json.loads(t.server.requests[0].form["claims"]) == {"access_token": {"xms_cc": {"values": ["cp1"]}}}
            challenge = {"access_token": {"nbf": {"essential": True, "value": "1"}}}
            assert await mine.renewed(old, json.dumps(challenge)) != old
            claims = json.loads(t.server.requests[1].form["claims"])["access_token"]
            assert claims == challenge["access_token"] | {"xms_cc": {"values": ["cp1"]}}

    run(test())


def test_the_present_token_is_used_while_the_endpoint_has_trouble(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            mine = MailboxTokens(await t.worker(), box)
            token = await mine.access()
            await t.w.shift(timedelta(seconds=3600 - 240))
            t.ahead = 3600 - 240
            t.server.say(Answer(503, ""))
            assert [await mine.access() for _ in range(5)] == [token] * 5
            assert len(t.server.requests) == 2, "tried once, and not again at each use"
            t.ahead += 60
            assert await mine.access() != token

    run(test())


@pytest.mark.parametrize("row", ["app-refused", "not-installed", "request-refused", "server-trouble"])
def test_whatever_is_nobodys_consent_lets_the_present_token_be_used_while_it_lives(database, row):
    async def test() -> None:
        async with tokens(database) as t:
            box = await mailbox(t, "microsoft")
            mine = MailboxTokens(await t.worker(), box)
            token = await mine.access()
            await t.w.shift(timedelta(seconds=3600 - 240))
            t.ahead = 3600 - 240
            t.server.say(entra("invalid_client", 1, 401) if row == "app-refused" else ANSWERS[row][-1][1])
            assert [await mine.access() for _ in range(3)] == [token] * 3
            assert len(t.server.requests) == 2
            told = [each["kind"] for each in await t.w.rows("SELECT kind FROM outtray.event")]
            assert told == (["provider_app.refused"] if row == "app-refused" else []), "the operator is told at once"

    run(test())


@pytest.mark.parametrize("kind", ["google", "microsoft"])
def test_a_consent_that_was_given_back_needs_the_person_and_asks_nobody(database, kind):
    async def test() -> None:
        async with tokens(database) as t:
            await mailbox(t, kind)
            name = "google-app" if kind == "google" else "entra"
            box = await t.mailbox(name, {"kind": kind}, ["Mail.Send"])
            outcome = await outcome_of(MailboxTokens(await t.worker(), box))
            assert isinstance(outcome, Held) and "given back" in outcome.reason
            assert t.server.requests == []

    run(test())


def test_an_answer_over_which_a_library_stumbles_is_trouble_of_the_provider(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            t.server.say(Answer(200, {"access_token": "x", "expires_in": "soon"}))
            outcome = await outcome_of(MailboxTokens(await t.worker(), box))
            assert isinstance(outcome, Parked) and outcome.evidence["rule"] == "no-answer-garbled"

    run(test())


# ── OAuth clients ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_client_is_tried_again_now_and_then_and_then_works(database):
    async def test() -> None:
        async with tokens(database) as t:
            boxes = [await t.google_box(person) for person in ("ann", "bob")]
            t.server.secret = "another by now"
            auth = await t.worker()
            for box in boxes:
                assert isinstance(await outcome_of(MailboxTokens(auth, box)), Parked)
            assert len(t.server.requests) == 1
            t.server.secret = SECRET
            assert isinstance(await outcome_of(MailboxTokens(auth, boxes[0])), Parked)
            await t.w.db.execute(
                "UPDATE outtray.mailbox SET parked_until = 'infinity', parked_reason = 'provider app refused (x)'"
            )
            await t.w.message(boxes[1].id)
            await t.w.shift(timedelta(minutes=6))
            assert await MailboxTokens(auth, boxes[0]).access()
            (app,) = await t.w.rows("SELECT status FROM outtray.provider_app")
            assert app["status"] == "active"
            rows = await t.w.rows("SELECT parked_until, next_at FROM outtray.mailbox WHERE id = %s", boxes[1].id)
            assert rows[0]["parked_until"] is None and rows[0]["next_at"] is not None, "the others go on too"
            assert await MailboxTokens(auth, boxes[1]).access()

    run(test())


def test_every_app_that_uses_a_refused_client_is_told_once(database):
    async def test() -> None:
        async with tokens(database) as t:
            boxes = [await t.google_box(person) for person in ("ann", "bob", "cy")]
            other = (await t.w.rows("INSERT INTO outtray.app (id, name) VALUES (gen_random_uuid(), 'o') RETURNING id"))[
                0
            ]
            await t.w.db.execute("UPDATE outtray.mailbox SET app_id = %s WHERE id = %s", [other["id"], boxes[2].id])
            t.server.secret = "another by now"
            workers = [await t.worker() for _ in range(3)]
            await asyncio.gather(*(outcome_of(MailboxTokens(auth, Box(box.id))) for auth in workers for box in boxes))
            told = await t.w.rows("SELECT app_id, data FROM outtray.event WHERE kind = 'provider_app.refused'")
            assert {row["app_id"] for row in told} == {t.w.app_id, other["id"]} and len(told) == 2
            assert told[0]["data"]["provider_app"] == "google-app"

    run(test())


def test_an_app_token_is_signed_by_its_certificate_and_the_people_are_never_asked(database):
    async def test() -> None:
        async with tokens(database) as t:
            await t.app("entra", "microsoft", kind="client_credentials", secret=certificate())
            box = await t.mailbox("entra", {"kind": "microsoft_app", "subject": "a@b.example"}, ["Mail.Send"])
            assert await MailboxTokens(await t.worker(), box).access()
            form = t.server.requests[0].form
            head = json.loads(base64.urlsafe_b64decode(form["client_assertion"].split(".")[0] + "=="))
            assert (form["grant_type"], head["alg"]) == ("client_credentials", "PS256")
            assert form["scope"] == "https://graph.microsoft.com/.default"

    run(test())


def test_a_key_that_is_none_refuses_the_client_without_asking(database):
    async def test() -> None:
        async with tokens(database) as t:
            await t.app("robot", "google", kind="service_account", secret="no json")
            box = await t.mailbox("robot", {"kind": "google_service_account", "subject": "a@b.example"}, [GOOGLE_SEND])
            outcome = await outcome_of(MailboxTokens(await t.worker(), box))
            assert isinstance(outcome, Parked) and "no such key" in outcome.reason
            assert t.server.requests == []

    run(test())


def test_no_exception_of_a_failed_refresh_shows_a_secret(database):
    async def test() -> None:
        async with tokens(database) as t:
            box = await t.google_box()
            token = t.server.people["ann"].chain[0]
            t.server.say(Answer(400, {"error": "invalid_grant", "error_description": f"{token} {SECRET}"}))
            with pytest.raises(NoToken) as raised:
                await MailboxTokens(await t.worker(), box).access()
            error: BaseException | None = raised.value
            while error is not None:
                assert token not in repr(error) + str(error) and SECRET not in repr(error)
                error = error.__cause__ or error.__context__

    run(test())


def test_a_secret_that_was_renewed_in_time_is_used_at_once_and_alarms_nobody(database):
    """This process still believes the old one, which the provider has just ceased to take."""

    async def test() -> None:
        async with tokens(database) as t:
            boxes = [await t.google_box(person) for person in ("ann", "bob")]
            auth = await t.worker()
            await MailboxTokens(auth, boxes[0]).access()
            t.server.secret = "another"
            sealed = t.vault.credentials.encrypt(b"another", bindings.provider_app_secret("google-app", 2))
            await t.w.db.execute("UPDATE outtray.provider_app SET secret = %s, secret_version = 2", [sealed])
            assert await MailboxTokens(auth, boxes[1]).access()
            assert [each.status for each in t.server.requests] == [200, 401, 200]
            assert not await t.w.rows("SELECT FROM outtray.event")

    run(test())
