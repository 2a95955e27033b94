"""The sandbox's Google is no kinder than the real one: what it refuses, what it changes, and how it is commanded."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from gmail_rig import COMPOSE, FULL, METADATA, MODIFY, READONLY, SEND
from google.auth import crypt, jwt

from outtray_sandbox.google import GoogleHouse, GoogleServer, Ledger
from outtray_sandbox.google.schemas import method_of
from outtray_sandbox.google.tokens import s256

ANN, BEN = "ann@sender.example", "ben@sender.example"
CLIENT, SECRET, BACK = "client-1", "secret-1", "http://127.0.0.1:9/back"
MIME = (
    b"From: ann@sender.example\r\nTo: to@first.example\r\nBcc: b@second.example\r\nSubject: s\r\n"
    b"Message-ID: <ours@x>\r\nX-Key: k1\r\n\r\nx\r\n"
)


@dataclass
class Reply:
    status: int
    headers: Message
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_Stay)


def http(method: str, url: str, data: bytes | None = None, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, named, method=method)  # noqa: S310 (our own server)
    try:
        with OPENER.open(request, timeout=10) as answer:
            return Reply(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.headers, error.read().decode())


@pytest.fixture
def google(tmp_path: Path) -> Iterator[GoogleServer]:
    with GoogleServer(GoogleHouse(Ledger(tmp_path / "accepted.jsonl"))) as server:
        server.house.add_user(ANN)
        server.house.add_user(BEN)
        server.house.add_client(CLIENT, SECRET)
        yield server
    assert server.seen.get("errors", 0) == 0


def call(
    google: GoogleServer, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
) -> Reply:
    token = google.house.access(ANN, MODIFY) if token is None else token
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
    return http(method, f"{google.url}/gmail/v1/users/me/{path}", data, **given)


def raw(mime: bytes = MIME) -> str:
    return base64.urlsafe_b64encode(mime).decode()


def send(google: GoogleServer, mime: bytes = MIME, **more: Any) -> Reply:
    return call(google, "POST", "messages/send", {"raw": raw(mime), **more})


def reason(reply: Reply) -> str:
    return str(reply.json()["error"]["errors"][0]["reason"])


# ── what it changes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_replaces_the_message_id_and_keeps_our_header(google: GoogleServer) -> None:
    sent = send(google).json()
    shown = call(google, "GET", f"messages/{sent['id']}?format=metadata").json()
    headers = {each["name"]: each["value"] for each in shown["payload"]["headers"]}
    assert headers["Message-ID"].endswith("@mail.gmail.com>")
    assert headers["X-Key"] == "k1"
    assert google.ledger.read()[0].rfc_message_id == "<ours@x>"
    assert google.ledger.read()[0].recipients == ("to@first.example", "b@second.example")


def test_a_draft_has_ids_of_its_own_and_is_consumed_by_its_sending(google: GoogleServer) -> None:
    draft = call(google, "POST", "drafts", {"message": {"raw": raw()}}).json()
    assert draft["id"] != draft["message"]["id"]
    sent = call(google, "POST", "drafts/send", {"id": draft["id"]}).json()
    assert sent["id"] != draft["message"]["id"]
    assert call(google, "POST", "drafts/send", {"id": draft["id"]}).status == 404
    assert call(google, "GET", f"drafts/{draft['id']}").status == 404
    assert len(google.ledger.read()) == 1


def test_the_search_lags_and_the_label_does_not(google: GoogleServer) -> None:
    sent = send(google).json()
    stored = google.house.users[ANN].mailbox.messages[sent["id"]]
    query = urlencode({"q": f"rfc822msgid:{stored.rfc_message_id.strip('<>')}"})
    assert call(google, "GET", "messages?labelIds=SENT").json()["messages"][0]["id"] == sent["id"]
    assert "messages" not in call(google, "GET", f"messages?{query}").json()
    google.house.shift_clock(google.house.search_lag)
    assert call(google, "GET", f"messages?{query}").json()["messages"][0]["id"] == sent["id"]


# ── what it refuses ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (SEND, {"messages/send"}),
        (COMPOSE, {"messages/send", "drafts", "profile"}),
        (METADATA, {"messages", "profile"}),
        (READONLY, {"messages", "messages?q=x", "drafts", "profile", "settings/sendAs"}),
        (MODIFY, {"messages/send", "messages", "messages?q=x", "drafts", "profile", "settings/sendAs"}),
        (FULL, {"messages/send", "messages", "messages?q=x", "drafts", "profile", "settings/sendAs"}),
    ],
    ids=lambda value: value.rsplit("/")[-1] if isinstance(value, str) else "",
)
def test_scopes_are_enforced_by_method(google: GoogleServer, scope: str, allowed: set[str]) -> None:
    token = google.house.access(ANN, scope)
    paths = ["messages/send", "messages", "messages?q=x", "drafts", "profile", "settings/sendAs"]
    replies = {
        path: call(google, "POST", path, {"raw": raw()}, token)
        if "send" in path[-5:]
        else call(google, "GET", path, token=token)
        for path in paths
    }
    assert {path for path, reply in replies.items() if reply.status == 200} == allowed
    assert {reply.status for path, reply in replies.items() if path not in allowed} <= {403}


def test_the_metadata_scope_shows_no_text(google: GoogleServer) -> None:
    sent, token = send(google).json(), google.house.access(ANN, METADATA)
    assert call(google, "GET", f"messages/{sent['id']}?format=full", token=token).status == 403
    assert call(google, "GET", f"messages/{sent['id']}?format=metadata", token=token).status == 200


@pytest.mark.parametrize("token", ["", "made-up"])
def test_without_a_valid_token_everything_is_refused(google: GoogleServer, token: str) -> None:
    reply = send_with(google, token)
    assert (reply.status, reason(reply)) == (401, "authError")
    assert "Bearer" in str(reply.headers["WWW-Authenticate"])


def send_with(google: GoogleServer, token: str) -> Reply:
    return call(google, "POST", "messages/send", {"raw": raw()}, token)


def test_a_token_expires_on_the_house_clock(google: GoogleServer) -> None:
    token = google.house.access(ANN, SEND)
    assert send_with(google, token).status == 200
    google.house.shift_clock(3600)
    assert send_with(google, token).status == 401


@pytest.mark.parametrize(
    "body",
    [
        {"raw": raw(), "subject": "x"},
        {"raw": raw(), "labelIds": "SENT"},
        {"raw": "not base64!"},
        {"raw": 7},
        {"threadId": "18"},
        {"message": {"raw": raw()}},
        [],
    ],
)
def test_a_body_that_does_not_fit_the_schema_is_refused(google: GoogleServer, body: Any) -> None:
    assert call(google, "POST", "messages/send", body).status == 400
    assert google.ledger.read() == []


def test_an_unknown_query_parameter_is_refused(google: GoogleServer) -> None:
    assert call(google, "GET", "messages?label=SENT").status == 400


@pytest.mark.parametrize(
    ("mime", "text"),
    [
        (b"To: nobody\r\n\r\nx", "Invalid To header"),
        (b"Subject: x\r\n\r\nx", "Recipient address required"),
        (
            b"To: " + b",\r\n ".join(b"p%d@x.example" % n for n in range(501)) + b"\r\n\r\nx",
            "Invalid number of recipients",
        ),
    ],
)
def test_mails_that_cannot_be_sent_are_refused(google: GoogleServer, mime: bytes, text: str) -> None:
    reply = send(google, mime)
    assert reply.status == 400
    assert text in reply.text


def test_json_above_five_megabytes_and_mails_above_the_maximum_are_refused(google: GoogleServer) -> None:
    large = MIME + b"x" * 4_000_000
    assert send(google, large).status == 413
    begin = upload_begin(google, 36_700_161)
    assert begin.status == 413
    assert google.ledger.read() == []


def test_another_persons_mailbox_is_refused(google: GoogleServer) -> None:
    token = google.house.access(ANN, MODIFY)
    reply = http("GET", f"{google.url}/gmail/v1/users/{BEN}/messages", Authorization=f"Bearer {token}")
    assert reply.status == 403
    assert "Delegation denied" in reply.text


def test_a_conversation_that_is_not_there_is_refused_and_a_stranger_does_not_join(google: GoogleServer) -> None:
    assert send(google, threadId="18ffff").status == 404
    first = send(google).json()
    assert send(google, threadId=first["threadId"]).json()["threadId"] != first["threadId"]
    stored = google.house.users[ANN].mailbox.messages[first["id"]]
    answer = MIME.replace(b"X-Key", b"In-Reply-To: " + stored.rfc_message_id.encode() + b"\r\nX-Key")
    assert send(google, answer, threadId=first["threadId"]).json()["threadId"] == first["threadId"]


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_quota_rolls_over_24_hours_and_names_the_time_in_the_text(google: GoogleServer) -> None:
    google.do("limit_daily", email=ANN, messages=2)
    assert [send(google).status for _ in range(2)] == [200, 200]
    refused = send(google)
    assert (refused.status, reason(refused)) == (429, "rateLimitExceeded")
    assert "User-rate limit exceeded.  Retry after 20" in refused.text and "(Mail sending)" in refused.text
    assert "Retry-After" not in refused.headers
    google.house.shift_clock(86_401)
    assert send(google).status == 200


def test_recipients_have_a_quota_of_their_own(google: GoogleServer) -> None:
    google.do("limit_daily", email=ANN, recipients=3)
    assert [send(google).status for _ in range(2)] == [200, 429]


def test_near_the_quota_a_success_may_have_sent_nothing(google: GoogleServer) -> None:
    google.do("lose_next", email=ANN)
    assert send(google).status == 200
    assert google.ledger.read() == []
    assert send(google).status == 200
    assert len(google.ledger.read()) == 1


# ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def upload_begin(google: GoogleServer, length: int, about: str = "messages/send", **more: Any) -> Reply:
    token = google.house.access(ANN, MODIFY)
    return http(
        "POST",
        f"{google.url}/upload/gmail/v1/users/me/{about}?uploadType=resumable",
        json.dumps(more).encode(),
        Authorization=f"Bearer {token}",
        Content_Type="application/json",
        X_Upload_Content_Type="message/rfc822",
        X_Upload_Content_Length=str(length),
    )


def put(google: GoogleServer, location: str, data: bytes, content_range: str) -> Reply:
    split = urlsplit(location)
    token = google.house.access(ANN, MODIFY)
    url = f"{google.url}{split.path}?{split.query}"
    return http("PUT", url, data, Authorization=f"Bearer {token}", Content_Range=content_range)


def test_a_resumable_upload_takes_pieces_says_what_came_and_sends_with_its_last(google: GoogleServer) -> None:
    mime = MIME + b"y" * 600_000
    begun = upload_begin(google, len(mime))
    location = str(begun.headers["Location"])
    assert urlsplit(location).netloc == "gmail.googleapis.com"
    first = put(google, location, mime[:262_144], f"bytes 0-262143/{len(mime)}")
    assert (first.status, first.headers["Range"]) == (308, "bytes=0-262143")
    asked = put(google, location, b"", f"bytes */{len(mime)}")
    assert (asked.status, asked.headers["Range"]) == (308, "bytes=0-262143")
    odd = put(google, location, mime[262_144:262_244], f"bytes 262144-262243/{len(mime)}")
    assert odd.status == 400
    last = put(google, location, mime[262_144:], f"bytes 262144-{len(mime) - 1}/{len(mime)}")
    assert last.status == 200 and last.json()["labelIds"] == ["SENT"]
    assert put(google, location, mime[262_144:], f"bytes 262144-{len(mime) - 1}/{len(mime)}").status == 404
    assert len(google.ledger.read()) == 1


def test_a_resumable_upload_has_no_range_before_its_first_byte(google: GoogleServer) -> None:
    location = str(upload_begin(google, 1000).headers["Location"])
    asked = put(google, location, b"", "bytes */1000")
    assert (asked.status, asked.headers["Range"]) == (308, None)


# ── OAuth ───────────────────────────────────────────────────────────────────────────────────────────────────────────

VERIFIER = "v" * 64


def consent(google: GoogleServer, scopes: str = f"openid email {COMPOSE}", **more: str) -> dict[str, str]:
    asked = {
        "client_id": CLIENT,
        "redirect_uri": BACK,
        "response_type": "code",
        "scope": scopes,
        "state": "st",
        "access_type": "offline",
        "prompt": "consent",
        "code_challenge": s256(VERIFIER),
        "code_challenge_method": "S256",
        "login_hint": ANN,
        **more,
    }
    reply = http("GET", f"{google.auth_url}?{urlencode(asked)}")
    assert reply.status == 302, reply.text
    return {name: values[0] for name, values in parse_qs(urlsplit(str(reply.headers["Location"])).query).items()}


def token(google: GoogleServer, **form: str) -> Reply:
    given = {"client_id": CLIENT, "client_secret": SECRET, **form}
    return http("POST", google.token_url, urlencode(given).encode())


def by_code(google: GoogleServer, code: str, **more: str) -> Reply:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK, "code_verifier": VERIFIER, **more}
    return token(google, **form)


def by_refresh(google: GoogleServer, refresh: str, **more: str) -> Reply:
    return token(google, grant_type="refresh_token", refresh_token=refresh, **more)


def test_a_consent_becomes_tokens_that_say_who_and_what(google: GoogleServer) -> None:
    back = consent(google)
    assert back["state"] == "st"
    said = by_code(google, back["code"]).json()
    assert said["scope"] == f"openid email {COMPOSE}"
    claims = json.loads(base64.urlsafe_b64decode(said["id_token"].split(".")[1] + "=="))
    assert (claims["email"], claims["aud"]) == (ANN, CLIENT)
    who = http("GET", f"{google.url}/v1/userinfo", Authorization=f"Bearer {said['access_token']}")
    assert who.json()["email"] == ANN
    assert send_with(google, said["access_token"]).status == 200
    assert by_code(google, back["code"]).json()["error"] == "invalid_grant", "a code is used once"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"code_verifier": "w" * 64}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1:8/"}, "redirect_uri_mismatch"),
        ({"client_secret": "wrong"}, "invalid_client"),
        ({"client_id": "nobody"}, "invalid_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
def test_a_code_is_worth_nothing_to_others(google: GoogleServer, change: dict[str, str], error: str) -> None:
    reply = by_code(google, consent(google)["code"], **change)
    assert reply.status in (400, 401)
    assert reply.json()["error"] == error


def test_people_may_deny_and_untick(google: GoogleServer) -> None:
    google.do("script_consent", deny=True)
    assert consent(google) == {"error": "access_denied", "state": "st"}
    google.do("script_consent", untick=[COMPOSE], user=BEN)
    said = by_code(google, consent(google, f"openid email {COMPOSE} {SEND}")["code"]).json()
    assert said["scope"] == f"openid email {SEND}"


def test_a_second_consent_without_prompt_brings_no_refresh_token(google: GoogleServer) -> None:
    assert "refresh_token" in by_code(google, consent(google, prompt="")["code"]).json()
    assert "refresh_token" not in by_code(google, consent(google, prompt="")["code"]).json()
    assert "refresh_token" in by_code(google, consent(google)["code"]).json()


@pytest.mark.parametrize(
    "change", [{"redirect_uri": "https://evil.example/"}, {"client_id": "x"}, {"response_type": "token"}]
)
def test_nobody_is_sent_back_to_a_place_that_was_not_registered(google: GoogleServer, change: dict[str, str]) -> None:
    asked = {"client_id": CLIENT, "redirect_uri": BACK, "response_type": "code", "scope": SEND, **change}
    assert http("GET", f"{google.auth_url}?{urlencode(asked)}").status == 400


@pytest.mark.parametrize(
    ("rotation", "new", "old"), [("none", False, 200), ("overlap", True, 200), ("strict", True, 400)]
)
def test_refresh_tokens_rotate_as_told(google: GoogleServer, rotation: str, new: bool, old: int) -> None:
    google.do("set_rotation", rotation=rotation)
    google.do("set_lifetime", seconds=5)
    refresh = google.house.grant(ANN, (SEND,), CLIENT)
    said = by_refresh(google, refresh).json()
    assert ("refresh_token" in said) is new
    assert said["expires_in"] == 5
    assert by_refresh(google, refresh).status == old
    if new:
        assert by_refresh(google, said["refresh_token"]).status == 200
    assert google.house.refreshes(ANN) == (2 if old == 200 else 1) + new


def test_a_refresh_whose_answer_is_lost_has_rotated_nevertheless(google: GoogleServer) -> None:
    google.do("set_rotation", rotation="strict")
    refresh = google.house.grant(ANN, (SEND,), CLIENT)
    google.add_rule(stage="token", drop="after", times=1)
    with pytest.raises(OSError):
        by_refresh(google, refresh)
    assert by_refresh(google, refresh).json()["error"] == "invalid_grant"


def test_a_refused_refresh_has_googles_shape(google: GoogleServer) -> None:
    refresh = google.house.grant(ANN, (SEND,), CLIENT)
    google.do("refuse_refresh", email=ANN, error="invalid_grant", error_subtype="invalid_rapt")
    reply = by_refresh(google, refresh)
    assert (reply.status, reply.json()) == (
        400,
        {"error": "invalid_grant", "error_description": "Bad Request", "error_subtype": "invalid_rapt"},
    )
    google.do("refuse_refresh", email=ANN, error=None)
    google.do("break_client", client_id=CLIENT, error="deleted_client")
    assert (by_refresh(google, refresh).status, by_refresh(google, refresh).json()["error"]) == (401, "deleted_client")


def test_revoking_one_token_ends_all_of_the_user_in_that_project(google: GoogleServer) -> None:
    google.house.add_client("client-2", "secret-2", project=CLIENT)
    google.house.add_client("client-3", "secret-3")
    mine = [google.house.grant(ANN, (SEND,), client) for client in (CLIENT, "client-2")]
    others = [google.house.grant(BEN, (SEND,), CLIENT), google.house.grant(ANN, (SEND,), "client-3")]
    access = by_refresh(google, mine[0]).json()["access_token"]
    assert http("POST", google.revoke_url, urlencode({"token": mine[1]}).encode()).status == 200
    assert by_refresh(google, mine[0]).json()["error"] == "invalid_grant"
    assert send_with(google, access).status == 401
    assert all(each in google.house.tokens.refresh for each in others)
    assert http("POST", google.revoke_url, urlencode({"token": mine[1]}).encode()).status == 400


def test_a_withdrawn_scope_is_missing_at_once(google: GoogleServer) -> None:
    refresh = google.house.grant(ANN, (SEND, METADATA), CLIENT)
    access = by_refresh(google, refresh).json()["access_token"]
    google.do("withdraw_scope", email=ANN, scope=SEND)
    assert (send_with(google, access).status, reason(send_with(google, access))) == (403, "insufficientPermissions")
    assert by_refresh(google, refresh).json()["scope"] == METADATA


def assertion(google: GoogleServer, key: bytes, **change: Any) -> Reply:
    now = int(time.time())
    claims = {
        "iss": "robot@p.example",
        "sub": ANN,
        "scope": SEND,
        "aud": google.token_url,
        "iat": now,
        "exp": now + 600,
        **change,
    }
    signed = jwt.encode(crypt.RSASigner.from_string(key), claims).decode()
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": signed}
    return http("POST", google.token_url, urlencode(form).encode())


def test_a_service_account_acts_for_users_of_its_domain(google: GoogleServer) -> None:
    private, public = new_key()
    google.do("add_service_account", email="robot@p.example", public_key=public, scopes=[SEND])
    said = assertion(google, private).json()
    assert send_with(google, said["access_token"]).status == 200
    assert google.ledger.read()[0].user == ANN
    refused = {
        "invalid_grant": [{"sub": "nobody@x.example"}, {"aud": "https://x/"}, {"exp": 1, "iat": 0}],
        "unauthorized_client": [{"scope": FULL}],
    }
    for error, changes in refused.items():
        assert [assertion(google, private, **change).json()["error"] for change in changes] == [error] * len(changes)
    assert assertion(google, new_key()[0]).json()["error_description"] == "Invalid JWT Signature."


def new_key() -> tuple[bytes, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public.decode()


# ── commanding it ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_of_sent_mail_shows_it_escaped(google: GoogleServer) -> None:
    send(
        google,
        MIME.replace(b"Subject: s", b"Subject: <b>Offer</b> & more").replace(
            b"\r\n\r\nx", b"\r\n\r\n<script>x</script>"
        ),
    )
    page = http("GET", f"{google.url}/").text
    assert "&lt;b&gt;Offer&lt;/b&gt; &amp; more" in page and "to@first.example" in page and "1 mail sent" in page
    assert "<script>" not in page and "<b>" not in page


def test_rules_and_commands_come_over_http(google: GoogleServer) -> None:
    rule = {"stage": "messages.send", "status": 503, "times": 1}
    assert http("POST", f"{google.url}/_sandbox/rules", json.dumps(rule).encode()).status == 200
    assert [send(google).status for _ in range(2)] == [503, 200]
    assert http("POST", f"{google.url}/_sandbox/do/lose_next", json.dumps({"email": ANN}).encode()).status == 200
    stats = http("POST", f"{google.url}/_sandbox/do/stats", b"").json()["done"]
    assert (stats["messages.send"], stats["taken"]) == (2, 1)
    assert http("POST", f"{google.url}/_sandbox/do/__init__", b"").status == 400
    http("POST", f"{google.url}/_sandbox/rules", json.dumps(rule).encode())
    assert http("DELETE", f"{google.url}/_sandbox/rules").status == 200
    assert send(google).status == 200


def test_a_request_can_bring_its_own_fault(google: GoogleServer) -> None:
    fault = json.dumps({"status": 504, "take": True})
    reply = call(google, "POST", "messages/send", {"raw": raw()}, X_Sandbox_Fault=fault)
    assert (reply.status, len(google.ledger.read())) == (504, 1)


@pytest.mark.parametrize("way", ["send", "draft"])
def test_a_mail_can_bring_its_own_fault(google: GoogleServer, way: str) -> None:
    fault = json.dumps({"stage": "messages.send|drafts.send", "status": 500, "take": True})
    mime = f"X-Sandbox-Fault: {fault}\r\n".encode() + MIME
    if way == "send":
        reply = send(google, mime)
    else:
        draft = call(google, "POST", "drafts", {"message": {"raw": raw(mime)}}).json()
        reply = call(google, "POST", "drafts/send", {"id": draft["id"]})
    assert (reply.status, len(google.ledger.read())) == (500, 1)


def test_every_route_is_one_of_the_discovery_document(google: GoogleServer) -> None:
    for route in google.gmail.routes():
        name = route.stage.removeprefix("upload.put.").removeprefix("upload.")
        described = method_of(name)
        upload = (described.get("mediaUpload") or {}).get("protocols", {}).get("simple", {}).get("path")
        assert route.path in (f"/{described['path']}", upload)
