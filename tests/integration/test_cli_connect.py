"""Connecting mailboxes by command line, at the sandbox's Google and Microsoft, by a browser that agrees at once."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_line import CommandLine
from crm import ask
from databases import Database
from outtray.cli import connect
from outtray_sandbox.google import GoogleHouse, GoogleServer
from outtray_sandbox.google import Ledger as GoogleLedger
from outtray_sandbox.microsoft import Ledger as MicrosoftLedger
from outtray_sandbox.microsoft import MicrosoftHouse, MicrosoftServer
from outtray_schema.consent import SCOPES
from polling import eventually

SECRET = "canary-secret"


@pytest.fixture
def google(tmp_path: Path) -> Iterator[GoogleServer]:
    house = GoogleHouse(GoogleLedger(tmp_path / "google.jsonl"))
    with GoogleServer(house) as running:
        house.add_client("client-1", SECRET)
        house.add_user("ann@example.com")
        yield running


@pytest.fixture
def microsoft(tmp_path: Path) -> Iterator[MicrosoftServer]:
    house = MicrosoftHouse(MicrosoftLedger(tmp_path / "microsoft.jsonl"))
    with MicrosoftServer(house) as running:
        house.add_user("ann@contoso.example")
        yield running


@pytest.fixture
def outtray(database: Database, google: GoogleServer, microsoft: MicrosoftServer) -> CommandLine:
    line = CommandLine.on(
        database.settings,
        OUTTRAY_GOOGLE_AUTH_URL=google.auth_url,
        OUTTRAY_GOOGLE_TOKEN_URL=google.token_url,
        OUTTRAY_GOOGLE_REVOKE_URL=google.revoke_url,
        OUTTRAY_ENTRA_URL=microsoft.entra_url,
        OUTTRAY_GMAIL_URL=google.url,
        OUTTRAY_GRAPH_URL=microsoft.graph_url,
    )
    line.ok("app", "add", "default")
    return line


class Browser:
    """Opens a page as a person's browser would: it follows redirects, and keeps what it is shown."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.shown: list[tuple[int, str]] = []
        self.before: Callable[[str], str] = lambda url: url

    def open(self, url: str) -> bool:
        self.opened.append(url)
        threading.Thread(target=self._visit, args=(self.before(url),), daemon=True).start()
        return True

    def _visit(self, url: str) -> None:
        try:
            with urllib.request.urlopen(url, timeout=30) as page:  # noqa: S310
                self.shown.append((page.status, page.read().decode()))
        except urllib.error.HTTPError as error:
            self.shown.append((error.code, error.read().decode()))


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Browser:
    made = Browser()
    monkeypatch.setattr(connect.webbrowser, "open", made.open)
    return made


def add_google_app(outtray: CommandLine) -> None:
    outtray.ok("provider-app", "add", "google", "--client-id", "client-1", "--from-stdin", stdin=SECRET + "\n")


def add_entra_app(outtray: CommandLine, microsoft: MicrosoftServer, *more: str) -> None:
    microsoft.house.add_client("app-1", secret=SECRET)
    outtray.ok(
        *("provider-app", "add", "microsoft", "--client-id", "app-1", "--from-stdin", *more), stdin=SECRET + "\n"
    )


# ── Google ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gmail_mailbox_is_connected_in_the_browser(database, outtray, browser):
    add_google_app(outtray)
    made = outtray.ok("mailbox", "connect", "google", "--json").json
    box = made["mailbox"]
    assert (box["address"], box["provider"], box["plan"], box["is_default"]) == (
        "ann@example.com",
        "gmail",
        "gmail",
        True,
    )
    assert tuple(box["scopes"]) == SCOPES["google"]["compose"]
    assert made["guarantee"]["drafts"] and made["guarantee"]["looks"] and made["not_granted"] == []
    (url,) = browser.opened
    for wanted in ("code_challenge_method=S256", "access_type=offline", "prompt=consent", "state=", "nonce="):
        assert wanted in url
    ((status, page),) = eventually(lambda: browser.shown)
    assert status == 200 and "Connected" in page
    (consent,) = ask(database.settings, "SELECT * FROM outtray.consent")
    assert (consent["kind"], consent["provider_app"]) == ("connected", "google")


def test_what_a_person_unticked_is_said_and_what_is_therefore_not_promised(outtray, browser, google):
    add_google_app(outtray)
    google.house.script_consent(untick=[SCOPES["google"]["compose"][1]])
    said = outtray.ok("mailbox", "connect", "google")
    assert "not granted: https://www.googleapis.com/auth/gmail.metadata" in said.err
    assert "cannot look" in said.out


def test_a_consent_that_lets_nothing_be_sent_is_refused(outtray, browser, google):
    add_google_app(outtray)
    google.house.script_consent(untick=list(SCOPES["google"]["send"]))
    refused = outtray("mailbox", "connect", "google", "--scopes", "send", "--json")
    assert (refused.code, [each["field"] for each in refused.error["problems"]]) == (1, ["scopes"])
    assert outtray.ok("mailbox", "list", "--json").json == []


def test_a_person_who_declines_is_told_so_in_both_places(outtray, browser, google):
    add_google_app(outtray)
    google.house.script_consent(deny=True)
    refused = outtray("mailbox", "connect", "google")
    assert refused.code == 1 and "access_denied" in refused.err
    ((_, page),) = eventually(lambda: browser.shown)
    assert "Not connected" in page


def test_a_mailbox_that_waits_is_connected_again_and_flows(database, outtray, browser):
    add_google_app(outtray)
    outtray.ok("mailbox", "connect", "google")
    outtray.ok("mailbox", "disconnect", "ann@example.com", "--yes")
    outtray.ok("send", "--to", "x@example.net", "--subject", "s", "--text-file", "-", stdin="t")
    assert outtray.ok("mailbox", "show", "ann@example.com", "--json").json["status"] == "reconnect"
    outtray.ok("mailbox", "connect", "google", "--address", "ann@example.com")
    box = outtray.ok("mailbox", "show", "ann@example.com", "--json").json
    assert box["status"] == "active" and box["next_at"] is not None
    kinds = [each["kind"] for each in outtray.ok("mailbox", "consents", "ann@example.com", "--json").json]
    assert kinds == ["connected", "disconnected", "reconnected"]
    assert "login_hint=ann" in browser.opened[1]


def test_somebody_else_than_the_owner_is_not_taken(outtray, browser, google):
    add_google_app(outtray)
    google.house.add_user("eve@example.com")
    google.house.script_consent(user="eve@example.com")
    refused = outtray("mailbox", "connect", "google", "--address", "ann@example.com")
    assert (refused.code, "log in as its owner" in refused.err) == (2, True)


def test_the_same_consent_serves_smtp(outtray, browser):
    add_google_app(outtray)
    box = outtray.ok("mailbox", "connect", "google", "--smtp", "--json").json["mailbox"]
    assert (box["provider"], box["scopes"], box["server"]["host"]) == (
        "smtp",
        ["https://mail.google.com/"],
        "smtp.gmail.com",
    )


def test_revoking_ends_it_at_google(outtray, browser, google):
    add_google_app(outtray)
    outtray.ok("mailbox", "connect", "google")
    assert google.house.tokens.refresh
    outtray.ok("mailbox", "revoke", "ann@example.com", "--yes")
    assert not google.house.tokens.refresh
    assert outtray.ok("mailbox", "show", "ann@example.com", "--json").json["status"] == "reconnect"


# ── the loopback page ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_with_another_state_is_not_taken_and_does_not_end_the_login(outtray, browser, monkeypatch):
    """What another page sends to our port meanwhile: the login goes on, and the right answer still counts."""
    add_google_app(outtray)
    forged: list[int] = []

    def forge(url: str) -> str:
        port = re.search(r"127\.0\.0\.1%3A(\d+)", url)
        assert port is not None
        for query in ("?code=x&state=wrong", "?code=x", "/favicon.ico"):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/{query}", timeout=10)
            except urllib.error.HTTPError as error:
                forged.append(error.code)
        return url

    browser.before = forge
    outtray.ok("mailbox", "connect", "google")
    assert forged == [400, 400, 404]


def test_nobody_consenting_ends_by_itself(outtray, monkeypatch):
    from outtray_worker import commands
    from outtray_worker.auth import consent

    add_google_app(outtray)
    monkeypatch.setattr(connect.webbrowser, "open", lambda url: True)
    monkeypatch.setattr(consent.obtain, "__kwdefaults__", {**consent.obtain.__kwdefaults__, "seconds": 0.2})
    assert commands.ask_for_consent
    refused = outtray("mailbox", "connect", "google", "--json")
    assert refused.code == 1 and "nobody consented" in refused.error["message"]


def test_without_a_browser_the_address_of_the_page_is_written(outtray, browser, monkeypatch):
    add_google_app(outtray)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        threading.Thread(target=urllib.request.urlopen, args=(text.rsplit(maxsplit=1)[-1],), daemon=True).start()

    monkeypatch.setattr(connect, "tell", tell)
    outtray.ok("mailbox", "connect", "google", "--no-browser")
    assert browser.opened == [] and len(told) == 1


# ── Microsoft ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_microsoft_mailbox_is_connected_in_the_browser(outtray, browser, microsoft):
    add_entra_app(outtray, microsoft)
    made = outtray.ok("mailbox", "connect", "microsoft", "--json").json
    box = made["mailbox"]
    assert (box["address"], box["provider"], box["plan"]) == ("ann@contoso.example", "microsoft", "microsoft")
    assert set(box["scopes"]) == set(SCOPES["microsoft"]["compose"])
    assert "code_challenge=" in browser.opened[0] and "localhost" in browser.opened[0]


def test_another_mailbox_than_the_persons_own_is_a_shared_one(outtray, browser, microsoft):
    add_entra_app(outtray, microsoft)
    microsoft.house.add_user("info@contoso.example")
    microsoft.house.next_user = "ann@contoso.example"
    browser.before = lambda url: re.sub(r"&login_hint=[^&]*", "", url)
    box = outtray.ok("mailbox", "connect", "microsoft", "--address", "info@contoso.example", "--json").json["mailbox"]
    assert (box["address"], box["server"]) == ("info@contoso.example", {"shared": True})
    assert {"Mail.Send.Shared", "Mail.ReadWrite.Shared"} <= set(box["scopes"])
    assert outtray.ok("mailbox", "test", "info@contoso.example", "--json").json["ok"]


def test_a_device_code_connects_from_a_machine_without_a_browser(outtray, browser, microsoft, monkeypatch):
    microsoft.house.add_client("public-1")
    outtray.ok("provider-app", "add", "microsoft", "--client-id", "public-1", "--no-secret")
    told: list[str] = []

    def agree(text: str) -> None:
        told.append(text)
        for device in microsoft.house.devices.values():
            device["user"] = "ann@contoso.example"

    monkeypatch.setattr(connect, "tell", agree)
    box = outtray.ok("mailbox", "connect", "microsoft", "--device", "--json").json["mailbox"]
    assert box["address"] == "ann@contoso.example"
    assert "enter the code" in told[0] and browser.opened == []


def test_microsoft_smtp_has_scopes_of_its_own_resource(outtray, browser, microsoft):
    add_entra_app(outtray, microsoft)
    box = outtray.ok("mailbox", "connect", "microsoft", "--smtp", "--json").json["mailbox"]
    assert (box["provider"], sorted(box["scopes"])) == ("smtp", sorted(SCOPES["microsoft"]["smtp"]))


def test_a_wrong_client_secret_is_said_without_showing_it(outtray, browser, microsoft):
    microsoft.house.add_client("app-1", secret="another")
    outtray.ok("provider-app", "add", "microsoft", "--client-id", "app-1", "--from-stdin", stdin=SECRET)
    refused = outtray("mailbox", "connect", "microsoft")
    assert refused.code == 1 and SECRET not in refused.err
    assert "7000215" in refused.err


# ── provider apps ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_provider_apps_are_added_listed_renewed_and_removed(outtray, tmp_path):
    file = tmp_path / "client_secret.json"
    file.write_text(json.dumps({"installed": {"client_id": "1-x.apps", "client_secret": SECRET}}))
    made = outtray.ok("provider-app", "add", "google", "--from-file", str(file), "--json").json
    assert (made["name"], made["client_id"], made["has_secret"]) == ("google", "1-x.apps", True)
    for arguments in (("provider-app", "list"), ("provider-app", "list", "--json")):
        assert SECRET not in outtray.ok(*arguments).out
    renewed = outtray.ok("provider-app", "set-secret", "google", "--from-stdin", "--json", stdin="new\n").json
    assert renewed["status"] == "active"
    assert outtray("provider-app", "set-secret", "absent", "--from-stdin", stdin="x").code == 3
    outtray.ok("provider-app", "remove", "google", "--yes")
    assert outtray.ok("provider-app", "list", "--json").json == []


def test_connecting_without_an_oauth_client_says_what_to_do(outtray, microsoft):
    refused = outtray("mailbox", "connect", "google")
    assert (refused.code, "provider-app add google" in refused.err) == (2, True)
    add_google_app(outtray)
    outtray.ok("provider-app", "add", "google", "--name", "two", "--client-id", "x", "--from-stdin", stdin=SECRET)
    refused = outtray("mailbox", "connect", "google")
    assert (refused.code, "google | two" in refused.err) == (2, True)


def test_a_delegated_mailbox_needs_no_browser(outtray, browser, tmp_path):
    file = tmp_path / "robot.json"
    file.write_text(json.dumps({"type": "service_account", "client_id": "7", "private_key": "k"}))
    outtray.ok("provider-app", "add", "google", "--name", "robot", "--from-file", str(file))
    made = outtray.ok("mailbox", "add", "delegated", "ann@example.com", "--provider-app", "robot", "--json").json
    assert made["mailbox"]["provider"] == "gmail" and browser.opened == []


def test_no_secret_or_token_is_written_anywhere(database, outtray, browser, google):
    add_google_app(outtray)
    said = [outtray.ok("mailbox", "connect", "google"), outtray.ok("mailbox", "connect", "google", "--json")]
    said += [outtray.ok("mailbox", "show", "ann@example.com", "--json"), outtray.ok("events", "--json")]
    text = "".join(each.out + each.err for each in said)
    tokens = [*google.house.tokens.refresh, *google.house.tokens.access]
    assert tokens
    for secret in (SECRET, *tokens):
        assert secret not in text
    for table in ("event", "journal", "consent", "mailbox", "provider_app"):
        rows = str(ask(database.settings, f"SELECT x::text FROM outtray.{table} AS x"))
        assert not [secret for secret in (SECRET, *tokens) if secret in rows]


def test_a_connected_mailbox_is_tested_without_sending(database, outtray, browser, google):
    outtray.environment["OUTTRAY_GMAIL_URL"] = google.url
    add_google_app(outtray)
    outtray.ok("mailbox", "connect", "google", "--scopes", "full")
    found = outtray.ok("mailbox", "test", "ann@example.com", "--json").json
    assert (found["ok"], found["address_matches"]) == (True, True)
    assert "Nothing was sent" in outtray.ok("mailbox", "test", "ann@example.com").out
    google.house.revoke_user("ann@example.com")
    ask(database.settings, "UPDATE outtray.token SET expires_at = outtray.outtray_now()")
    refused = outtray("mailbox", "test", "ann@example.com")
    assert refused.code == 1 and "withdrawn" in refused.err and "mailbox connect google" in refused.out


# ── which From addresses it may use ───────────────────────────────────────────────────────────────────────────────


def test_connecting_learns_the_verified_from_addresses_where_the_scopes_show_them(outtray, browser, google, microsoft):
    google.house.add_alias("ann@example.com", "sales@example.com")
    google.house.add_alias("ann@example.com", "unproven@example.com", status="pending")
    add_google_app(outtray)
    connected = outtray.ok("mailbox", "connect", "google", "--scopes", "full", "--json").json
    assert connected["mailbox"]["aliases"] == ["sales@example.com"]
    microsoft.house.add_user("ann@contoso.example", aliases=["info@contoso.example"])
    add_entra_app(outtray, microsoft)
    connected = outtray.ok("mailbox", "connect", "microsoft", "--scopes", "full", "--json").json
    assert connected["mailbox"]["aliases"] == ["info@contoso.example"]


def test_senders_are_learned_later_too_and_keep_what_was_entered(outtray, browser, google):
    add_google_app(outtray)
    outtray.ok("mailbox", "connect", "google", "--scopes", "full")
    outtray.ok("mailbox", "set", "ann@example.com", "--alias", "entered@example.com")
    google.house.add_alias("ann@example.com", "sales@example.com")
    learned = outtray.ok("mailbox", "senders", "ann@example.com", "--json").json["mailbox"]
    assert learned["aliases"] == ["entered@example.com", "sales@example.com"]


def test_scopes_that_show_no_from_addresses_leave_them_as_they_are(outtray, browser):
    add_google_app(outtray)
    connected = outtray.ok("mailbox", "connect", "google", "--scopes", "send", "--json").json
    assert connected["mailbox"]["aliases"] == []
