"""The sandbox's Microsoft 365 is no kinder than the real one: Graph's limits and refusals, Entra's tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msal
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from outtray_sandbox.microsoft import Ledger, MicrosoftHouse, MicrosoftServer
from polling import eventually

ANN, BOB = "ann@contoso.example", "bob@contoso.example"
PREFER = {"Prefer": 'IdType="ImmutableId"'}
MESSAGE: dict[str, Any] = {
    "subject": "Hi",
    "body": {"contentType": "text", "content": "x"},
    "toRecipients": [{"emailAddress": {"address": "to@first.example"}}],
}


@dataclass
class Said:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


@dataclass
class Client:
    """A plain client of the fake: nothing of the provider is used here."""

    server: MicrosoftServer
    token: str = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Said:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        url = path if path.startswith("http") else self.server.graph_url + path
        sent = {**kind, **({"Authorization": f"Bearer {self.token}"} if self.token else {}), **headers}
        request = urllib.request.Request(url, data=data, method=method, headers=sent)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return Said(answer.status, _json(answer.read()), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Said(error.code, _json(error.read()), dict(error.headers))

    def draft(self, **fields: Any) -> dict[str, Any]:
        said = self.ask("POST", "/me/messages", {**MESSAGE, **fields}, **PREFER)
        assert said.status == 201, said
        return dict(said.body)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


@pytest.fixture
def house(tmp_path: Path) -> MicrosoftHouse:
    house = MicrosoftHouse(Ledger(tmp_path / "ledger.jsonl"), sent_copy_after=0.0)
    house.add_user(ANN, aliases=["sales@contoso.example"])
    house.add_user(BOB)
    return house


@pytest.fixture
def server(house: MicrosoftHouse) -> Iterator[MicrosoftServer]:
    with MicrosoftServer(house) as server:
        yield server
    assert server.seen.get("errors", 0) == 0


@pytest.fixture
def ann(server: MicrosoftServer, house: MicrosoftHouse) -> Client:
    return Client(server, house.issue(ANN))


# ── Graph ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"colour": "red"}, "RequestBodyRead"),
        ({"subject": 7}, "RequestBodyRead"),
        ({"isDraft": False}, "RequestBodyRead"),
        ({"toRecipients": {"emailAddress": {}}}, "RequestBodyRead"),
        ({"toRecipients": [{"address": "to@first.example"}]}, "RequestBodyRead"),
        ({"importance": "urgent"}, "RequestBodyRead"),
        ({"isReadReceiptRequested": "yes"}, "RequestBodyRead"),
        ({"internetMessageHeaders": [{"name": "In-Reply-To", "value": "<a@b>"}]}, "InvalidInternetMessageHeader"),
        ({"internetMessageHeaders": [{"name": f"x-{n}", "value": ""} for n in range(6)]},
         "InvalidInternetMessageHeaderCollection"),
        ({"internetMessageId": "none"}, "ErrorInvalidPropertySet"),
        ({"singleValueExtendedProperties": [{"id": "OutboxKey", "value": "x"}]}, "ErrorInvalidProperty"),
        ({"attachments": [{"name": "a", "contentBytes": "AA=="}]}, "RequestBodyRead"),
        ({"attachments": [{"@odata.type": "#microsoft.graph.fileAttachment", "name": "a", "contentBytes": "*"}]},
         "RequestBodyRead"),
    ],
)  # fmt: skip
def test_what_graph_does_not_know_or_take_is_refused(ann: Client, fields: dict[str, Any], code: str) -> None:
    said = ann.ask("POST", "/me/messages", {**MESSAGE, **fields})
    assert (said.status, said.code) == (400, code)


def test_an_error_has_the_shape_and_the_ids_of_graphs(ann: Client) -> None:
    said = ann.ask("GET", "/me/messages/nothing", **{"client-request-id": "mine"})
    assert (said.status, said.code) == (404, "ErrorItemNotFound")
    assert said.body["error"]["innerError"]["client-request-id"] == "mine"
    assert said.headers["request-id"] == said.body["error"]["innerError"]["request-id"]


def test_a_draft_is_sent_once_and_its_mutable_id_changes(ann: Client, house: MicrosoftHouse) -> None:
    draft = ann.draft()
    mutable = ann.ask("GET", f"/me/messages/{draft['id']}").body["id"]
    assert mutable != draft["id"]
    said = ann.ask("POST", f"/me/messages/{draft['id']}/send", b"")
    assert (said.status, said.body) == (202, b"")
    assert ann.ask("POST", f"/me/messages/{draft['id']}/send", b"").status == 400
    copy = ann.ask("GET", f"/me/messages/{draft['id']}", **PREFER).body
    assert (copy["isDraft"], copy["internetMessageId"]) == (False, draft["internetMessageId"])
    assert ann.ask("GET", f"/me/messages/{mutable}").status == 404
    assert len(house.ledger.read()) == 1


@pytest.mark.parametrize("vanishing", [False, True])
def test_the_copy_comes_late_and_until_then_the_draft_looks_like_one_or_is_gone(
    ann: Client, house: MicrosoftHouse, vanishing: bool
) -> None:
    house.sent_copy_after, house.vanishing = 30, vanishing
    draft = ann.draft()
    ann.ask("POST", f"/me/messages/{draft['id']}/send", b"")
    early = ann.ask("GET", f"/me/messages/{draft['id']}", **PREFER)
    assert early.status == 404 if vanishing else early.body["isDraft"] is True
    assert ann.ask("POST", f"/me/messages/{draft['id']}/send", b"").status == 404
    assert ann.ask("PATCH", f"/me/messages/{draft['id']}", {"subject": "late"}).status == 404
    house.shift_clock(31)
    assert ann.ask("GET", f"/me/messages/{draft['id']}", **PREFER).body["isDraft"] is False


def test_scopes_are_enforced_by_method(server: MicrosoftServer, house: MicrosoftHouse, ann: Client) -> None:
    draft = ann.draft()
    sends, reads = Client(server, house.issue(ANN, "Mail.Send")), Client(server, house.issue(ANN, "Mail.Read"))
    assert sends.ask("POST", "/me/messages", MESSAGE).code == "ErrorAccessDenied"
    assert sends.ask("GET", f"/me/messages/{draft['id']}").status == 403
    assert reads.ask("GET", f"/me/messages/{draft['id']}").status == 200
    assert reads.ask("POST", f"/me/messages/{draft['id']}/send", b"").status == 403
    assert sends.ask("POST", f"/me/messages/{draft['id']}/send", b"").status == 202
    assert ann.ask("GET", f"/users/{BOB}/messages").status == 403
    assert Client(server, "made up").ask("GET", "/me").code == "InvalidAuthenticationToken"


def test_mime_is_standard_base64_and_its_from_is_ignored(ann: Client, house: MicrosoftHouse) -> None:
    mime = f"From: boss@contoso.example\r\nTo: to@first.example\r\nBcc: b@x.example\r\nSubject: Hi\r\n\r\n{'?>' * 9}ÿ"
    plain = {"Content-Type": "text/plain"}
    assert ann.ask("POST", "/me/sendMail", base64.urlsafe_b64encode(mime.encode()), **plain).code == (
        "ErrorMimeContentInvalidBase64String"
    )
    assert ann.ask("POST", "/me/sendMail", base64.b64encode(mime.encode()), **plain).status == 202
    (taken,) = house.ledger.read()
    assert (taken.sender, taken.recipients) == (ANN, ("to@first.example", "b@x.example"))


def test_a_body_beyond_4_mb_is_refused(ann: Client) -> None:
    assert ann.ask("POST", "/me/messages", b"x" * (4 * 1024 * 1024 + 1)).status == 413


def test_send_as_is_refused_where_it_was_not_granted(ann: Client) -> None:
    for sender, status in (("boss@contoso.example", 403), ("sales@contoso.example", 202)):
        draft = ann.draft(**{"from": {"emailAddress": {"address": sender}}})
        assert ann.ask("POST", f"/me/messages/{draft['id']}/send", b"").status == status


def test_recipients_count_within_any_24_hours(ann: Client, house: MicrosoftHouse) -> None:
    house.set_limit("recipients_a_day", 2)
    answers = []
    for hours in (0, 1, 1, 22.1):
        house.shift_clock(hours * 3600)
        ann.token = house.issue(ANN)
        answers.append(ann.ask("POST", "/me/sendMail", {"message": MESSAGE}))
    assert [said.status for said in answers] == [202, 202, 429, 202]
    assert answers[2].code == "ErrorExceededMessageLimit"


def test_more_than_four_requests_at_once_are_throttled(ann: Client, server: MicrosoftServer) -> None:
    async def many() -> list[int]:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ann.token}"}) as session:

            async def one() -> int:
                async with session.post(f"{server.graph_url}/me/messages", data=slow()) as answer:
                    return answer.status

            started = [asyncio.ensure_future(one()) for _ in range(6)]
            while not any(task.done() for task in started):
                await asyncio.sleep(0.01)
            go.set()
            return sorted(await asyncio.gather(*started))

    go = asyncio.Event()

    async def slow() -> Any:
        yield b'{"subject": '
        await go.wait()
        yield b'"x"}'

    assert asyncio.run(many()) == [201, 201, 201, 201, 429, 429]


def test_an_upload_takes_pieces_in_order_and_no_token(ann: Client, house: MicrosoftHouse) -> None:
    draft, size = ann.draft(), 3_276_800 + 5
    path = f"/me/messages/{draft['id']}/attachments/createUploadSession"
    small = {"AttachmentItem": {"attachmentType": "file", "name": "a", "size": 1000}}
    assert ann.ask("POST", path, small).code == "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize"
    opened = ann.ask("POST", path, {"AttachmentItem": {"attachmentType": "file", "name": "a", "size": size}})
    assert (opened.status, opened.body["nextExpectedRanges"]) == (201, ["0-"])
    url, stranger = opened.body["uploadUrl"], Client(ann.server)

    def put(client: Client, first: int, data: bytes) -> Said:
        span = f"bytes {first}-{first + len(data) - 1}/{size}"
        return client.ask("PUT", url, data, **{"Content-Range": span, "Content-Type": "application/octet-stream"})

    assert put(ann, 0, b"x" * 327_680).status == 401
    assert put(stranger, 0, b"x" * 1000).status == 400
    first = put(stranger, 0, b"x" * 327_680)
    assert (first.status, first.body["nextExpectedRanges"]) == (200, ["327680"])
    assert put(stranger, 0, b"x" * 327_680).status == 416
    assert stranger.ask("GET", url).body["nextExpectedRanges"] == ["327680"]
    assert put(stranger, 327_680, b"y" * (3_276_800 - 327_680)).status == 200
    assert put(stranger, 3_276_800, b"z" * 5).status == 201
    assert stranger.ask("GET", url).status == 404
    listed = ann.ask("GET", f"/me/messages/{draft['id']}/attachments").body["value"]
    assert [each["name"] for each in listed] == ["a"]


def test_an_upload_session_expires(ann: Client, house: MicrosoftHouse) -> None:
    path = f"/me/messages/{ann.draft()['id']}/attachments/createUploadSession"
    opened = ann.ask("POST", path, {"AttachmentItem": {"attachmentType": "file", "name": "a", "size": 4_000_000}})
    house.shift_clock(3601)
    assert Client(ann.server).ask("GET", opened.body["uploadUrl"]).status == 404


def test_filters_that_graph_would_not_take_are_refused(ann: Client) -> None:
    query = urllib.parse.quote("internetMessageHeaders eq 'x'")
    assert ann.ask("GET", f"/me/messages?$filter={query}").code == "ErrorInvalidUrlQueryFilter"


def test_a_forward_without_recipients_is_refused(ann: Client, server: MicrosoftServer) -> None:
    item = server.receive(ANN, "x@first.example", "Hello", "text")
    assert ann.ask("POST", f"/me/messages/{item.immutable}/createForward", {}).status == 400
    assert ann.ask("POST", f"/me/messages/{item.immutable}/createReplyAll", b"").status == 201


def test_the_page_shows_what_was_sent_escaped(ann: Client, server: MicrosoftServer) -> None:
    ann.ask("POST", "/me/sendMail", {"message": {**MESSAGE, "subject": "<script>"}})
    with urllib.request.urlopen(server.url) as page:  # noqa: S310
        shown = page.read().decode()
    assert "to@first.example" in shown and "&lt;script&gt;" in shown and "<script>" not in shown


def test_it_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outtray_sandbox.microsoft", "--ledger", str(tmp_path / "l"), "--user", ANN]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        where = f"{url}/common/v2.0/.well-known/openid-configuration"
        with urllib.request.urlopen(where) as answer:  # noqa: S310
            assert json.load(answer)["token_endpoint"] == f"{url}/common/oauth2/v2.0/token"
        process.terminate()
        eventually(lambda: process.poll() is not None)


# ── Entra, asked by msal ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Reply:
    status_code: int
    text: str
    headers: dict[str, str]

    def raise_for_status(self) -> None:
        if self.status_code >= 400:
            raise urllib.error.URLError(str(self.status_code))


@dataclass
class Http:
    """msal wants an authority that is https in form; the sandbox has none."""

    client: Client
    posts: list[str] = field(default_factory=list)

    def get(self, url: str, params: Any = None, headers: Any = None, **_: Any) -> Reply:
        return self._ask("GET", url + (f"?{urllib.parse.urlencode(params)}" if params else ""), None)

    def post(self, url: str, data: Any = None, params: Any = None, headers: Any = None, **_: Any) -> Reply:
        self.posts.append(url)
        body = urllib.parse.urlencode({name: value for name, value in (data or {}).items() if value is not None})
        return self._ask("POST", url, body.encode())

    def _ask(self, method: str, url: str, body: bytes | None) -> Reply:
        kind = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        said = self.client.ask(method, url.replace("https://127.0.0.1", "http://127.0.0.1"), body, **kind)
        text = json.dumps(said.body).replace("http://127.0.0.1", "https://127.0.0.1")
        return Reply(said.status, text, said.headers)

    def close(self) -> None:
        return None


def app(server: MicrosoftServer, client_id: str, tenant: str = "common", credential: Any = None) -> Any:
    kind = msal.PublicClientApplication if credential is None else msal.ConfidentialClientApplication
    options = {} if credential is None else {"client_credential": credential}
    place = server.entra_url.replace("http://", "https://")
    return kind(
        client_id,
        authority=f"{place}/{tenant}",
        http_client=Http(Client(server)),
        instance_discovery=False,
        **options,
    )


def signed_in(server: MicrosoftServer, application: Any, scopes: list[str], user: str = ANN) -> dict[str, Any]:
    """The flow of a browser: the page, the redirect, the code."""
    flow = application.initiate_auth_code_flow(scopes, redirect_uri="http://localhost:1/", login_hint=user)
    url = flow["auth_uri"].replace("https://127.0.0.1", "http://127.0.0.1")
    answer = _redirect(url)
    return dict(application.acquire_token_by_auth_code_flow(flow, answer))


def _redirect(url: str) -> dict[str, str]:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.build_opener(Stay).open(url)
    target = urllib.parse.urlsplit(found.value.headers["Location"])
    return {name: values[0] for name, values in urllib.parse.parse_qs(target.query).items()}


def test_a_person_signs_in_with_pkce_and_the_token_opens_graph(server: MicrosoftServer, house: MicrosoftHouse) -> None:
    house.add_client("crm", secret="s3cret")
    found = signed_in(server, app(server, "crm", credential="s3cret"), ["Mail.Send", "Mail.ReadWrite"])
    assert "error" not in found, found
    assert found["id_token_claims"]["preferred_username"] == ANN
    assert Client(server, found["access_token"]).ask("POST", "/me/sendMail", {"message": MESSAGE}).status == 202
    assert found["refresh_token"]


def test_a_code_serves_once_and_only_with_its_verifier(server: MicrosoftServer, house: MicrosoftHouse) -> None:
    house.add_client("cli")
    application = app(server, "cli")
    flow = application.initiate_auth_code_flow(["Mail.Send"], redirect_uri="http://localhost:1/", login_hint=ANN)
    answer = _redirect(flow["auth_uri"].replace("https://127.0.0.1", "http://127.0.0.1"))
    wrong = application.acquire_token_by_auth_code_flow({**flow, "code_verifier": "x" * 50}, answer)
    assert (wrong["error"], wrong["error_codes"]) == ("invalid_grant", [501481])
    again = app(server, "cli").acquire_token_by_auth_code_flow(flow, answer)
    assert (again["error"], again["error_codes"]) == ("invalid_grant", [70008])


def test_a_person_may_decline_or_untick_a_scope(server: MicrosoftServer, house: MicrosoftHouse) -> None:
    house.add_client("cli")
    house.deny = "access_denied"
    assert signed_in(server, app(server, "cli"), ["Mail.Send"])["error"] == "access_denied"
    house.deny, house.untick = None, {"Mail.ReadWrite"}
    house.consent(ANN, "openid profile")
    found = signed_in(server, app(server, "cli"), ["Mail.Send", "Mail.ReadWrite"])
    assert found["scope"].split() == ["Mail.Send"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_refresh_brings_a_new_refresh_token_and_the_old_one_lives_unless_strict(
    server: MicrosoftServer, house: MicrosoftHouse, strict: bool
) -> None:
    house.add_client("cli")
    house.strict_rotation = strict
    first = house.issue_refresh(ANN, "cli", frozenset({"Mail.Send"}))
    second = app(server, "cli").acquire_token_by_refresh_token(first, ["Mail.Send"])
    assert second["refresh_token"] != first
    again = app(server, "cli").acquire_token_by_refresh_token(first, ["Mail.Send"])
    assert ("error" in again) is strict
    assert "access_token" in app(server, "cli").acquire_token_by_refresh_token(second["refresh_token"], ["Mail.Send"])
    assert house.refreshes_of()[ANN] == (2 if strict else 3)


def test_a_token_is_for_one_audience(server: MicrosoftServer, house: MicrosoftHouse) -> None:
    house.add_client("cli")
    house.consent(ANN, "Mail.Send SMTP.Send IMAP.AccessAsUser.All")
    refresh = house.issue_refresh(ANN, "cli", frozenset({"Mail.Send"}))
    smtp = "https://outlook.office.com/SMTP.Send"
    found = app(server, "cli").acquire_token_by_refresh_token(refresh, [smtp])
    assert found["scope"] == smtp
    assert Client(server, found["access_token"]).ask("POST", "/me/sendMail", {"message": MESSAGE}).status == 401
    both = app(server, "cli").acquire_token_by_refresh_token(refresh, [smtp, "Mail.Send"])
    assert both["error"] == "invalid_scope"


ERRORS: dict[str, tuple[str, int]] = {
    "revoked": ("invalid_grant", 50173),
    "consent gone": ("invalid_grant", 65001),
    "wrong secret": ("invalid_client", 7000215),
    "expired secret": ("invalid_client", 7000222),
    "unknown client": ("unauthorized_client", 700016),
    "garbage": ("invalid_grant", 9002313),
    "user gone": ("invalid_grant", 50034),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_have_the_shape_and_numbers_of_entras(server: MicrosoftServer, house: MicrosoftHouse, what: str) -> None:
    house.add_client("crm", secret="s3cret", secret_expired=what == "expired secret")
    refresh = house.issue_refresh(ANN, "crm", frozenset({"Mail.Send"}))
    if what == "revoked":
        house.revoke(ANN)
    if what == "consent gone":
        house.consent(ANN, "openid")
    if what == "user gone":
        del house.mailboxes[ANN]
    client_id = "other" if what == "unknown client" else "crm"
    secret = "wrong" if what == "wrong secret" else "s3cret"
    application = app(server, client_id, credential=secret)
    said = application.acquire_token_by_refresh_token("x" if what == "garbage" else refresh, ["Mail.Send"])
    error, number = ERRORS[what]
    assert (said["error"], said["error_codes"]) == (error, [number])
    assert said["error_description"].startswith(f"AADSTS{number}: ")
    assert said["correlation_id"] and said["trace_id"]


def certificate() -> tuple[bytes, bytes]:
    """A key and its self-signed certificate, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "crm")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, made.public_bytes(pem)


def test_an_application_signs_in_by_secret_or_by_its_certificate(
    server: MicrosoftServer, house: MicrosoftHouse
) -> None:
    private, public = certificate()
    house.add_client("daemon", secret="s3cret", certificate=public)
    scopes = ["https://graph.microsoft.com/.default"]
    by_key = {"private_key": private.decode(), "public_certificate": public.decode()}
    for credential in ("s3cret", by_key):
        found = app(server, "daemon", "contoso", credential).acquire_token_for_client(scopes)
        assert "access_token" in found, found
        path = f"/users/{ANN}/sendMail"
        assert Client(server, found["access_token"]).ask("POST", path, {"message": MESSAGE}).status == 202
        assert Client(server, found["access_token"]).ask("POST", "/me/sendMail", {"message": MESSAGE}).status == 400
    stranger, _ = certificate()
    wrong = {"private_key": stranger.decode(), "public_certificate": public.decode()}
    said = app(server, "daemon", "contoso", wrong).acquire_token_for_client(scopes)
    assert (said["error"], said["error_codes"]) == ("invalid_client", [700027])


def test_a_device_signs_in_once_its_code_was_entered(server: MicrosoftServer, house: MicrosoftHouse) -> None:
    house.add_client("cli")
    application = app(server, "cli")
    flow = application.initiate_device_flow(["Mail.Send"])
    assert "user_code" in flow, flow
    once = {"exit_condition": lambda _: True}
    pending = application.acquire_token_by_device_flow(flow, **once)
    assert pending["error"] == "authorization_pending"
    house.approve_device(flow["user_code"], ANN)
    assert "access_token" in application.acquire_token_by_device_flow(flow, **once)
    declined = application.initiate_device_flow(["Mail.Send"])
    house.approve_device(declined["user_code"], "")
    assert application.acquire_token_by_device_flow(declined, **once)["error"] == "authorization_declined"


def test_a_challenged_user_needs_a_token_that_answers_the_claims(
    server: MicrosoftServer, house: MicrosoftHouse
) -> None:
    house.add_client("cli")
    refresh = house.issue_refresh(ANN, "cli", frozenset({"Mail.Send"}))
    application = app(server, "cli")
    old = application.acquire_token_by_refresh_token(refresh, ["Mail.Send"])["access_token"]
    house.challenge(ANN)
    refused = Client(server, old).ask("POST", "/me/sendMail", {"message": MESSAGE})
    claims = base64.b64decode(refused.headers["WWW-Authenticate"].partition('claims="')[2].partition('"')[0]).decode()
    can = json.dumps({"access_token": {"xms_cc": {"values": ["cp1"]}}})
    for asked, status in ((can, 401), (claims, 202)):
        found = app(server, "cli").acquire_token_by_refresh_token(refresh, ["Mail.Send"], data={"claims": asked})
        said = Client(server, found["access_token"]).ask("POST", "/me/sendMail", {"message": MESSAGE})
        assert said.status == status
    assert Client(server, old).ask("POST", "/me/sendMail", {"message": MESSAGE}).status == 401
