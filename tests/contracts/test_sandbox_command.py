"""`outtray sandbox` as its users start it: what it says, its page, its faults, and mail through each of its servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from provider_rigs import deliver, mail_of, quick_settings

from command_line import CommandLine
from outtray_sandbox.sandbox import PEOPLE, Sandbox
from outtray_sandbox.sandbox.faults import FAULTS, rule_of
from outtray_sandbox.smtp import Rule as SmtpRule
from outtray_sandbox.web import Rule as WebRule
from outtray_schema.outcome import Held, Sent, Unknown
from outtray_schema.settings import Settings, load_settings
from outtray_worker.providers import Account
from outtray_worker.providers.gmail import GmailProvider
from outtray_worker.providers.microsoft import MicrosoftProvider
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.providers.web import Web
from outtray_worker.providers.web.signals import Signals

DOCS = Path(__file__).parents[2] / "docs"
PATIENCE = 60.0


@contextlib.contextmanager
def started(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A sandbox as a process, and the first line that it wrote."""
    process = CommandLine().start("sandbox", *flags, start_new_session=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def rest_of(process: subprocess.Popen[str]) -> str:
    """What it wrote behind its first line until it ended."""
    assert process.stdout is not None
    rest = process.stdout.read()
    process.wait(PATIENCE)
    return rest


@pytest.fixture(scope="module")
def process() -> Iterator[dict[str, Any]]:
    """What a sandbox in a process of its own said of itself."""
    with started("--json") as (_, said):
        yield json.loads(said)


@pytest.fixture
def said(process: dict[str, Any]) -> dict[str, Any]:
    """The same, without the faults and the mail of the test before."""
    ask(f"{process['url']}/forget", {})
    return process


def ask(url: str, body: Mapping[str, Any] | bytes | None = None, **headers: str) -> str:
    """A GET, or with a body a POST of it, as JSON unless it is a form; redirects are followed."""
    data = json.dumps(body).encode() if isinstance(body, Mapping) else body
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - of our own sandbox
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        return answer.read().decode()


def sent(said: Mapping[str, Any], **chosen: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode(chosen)
    return json.loads(ask(f"{said['url']}/sent.json?{query}"))["mails"]


# ── mail through each server ────────────────────────────────────────────────────────────────────────────────────────


class Refreshed:
    """The access token that a refresh token brings at the sandbox, by the protocol and nothing else."""

    def __init__(self, said: Mapping[str, Any], person: Mapping[str, Any]) -> None:
        issuer = "google" if person["provider"] == "gmail" else "microsoft"
        (app,) = (each for each in said["apps"] if each["provider"] == issuer)
        where = said["environment"]
        entra = f"{where['OUTTRAY_ENTRA_URL']}/common/oauth2/v2.0/token"
        url = where["OUTTRAY_GOOGLE_TOKEN_URL"] if issuer == "google" else entra
        form = {
            "grant_type": "refresh_token", "refresh_token": person["secret"], "client_id": app["client_id"],
            "client_secret": app["secret"],
        }  # fmt: skip
        self._token = json.loads(ask(url, urllib.parse.urlencode(form).encode()))["access_token"]

    async def access(self) -> str:
        return self._token

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        raise AssertionError("a fresh token was refused")


class Route:
    """Our provider of one person's mailbox, pointed at the sandbox by its own settings."""

    def __init__(self, said: Mapping[str, Any], person: Mapping[str, Any], folder: Path) -> None:
        self.account = account_of(said, person)
        self.settings = settings_of(said, folder)
        self.kind = person["provider"]

    async def send(self, subject: str) -> Any:
        mail = mail_of(
            f"From: {self.account.address}\r\nTo: bob@example.org\r\nSubject: {subject}\r\nMessage-ID: "
            f"<{uuid4()}@example.org>\r\n\r\nHello <b>Bob</b>\r\n".encode(),
            ("bob@example.org",),
            self.account.address,
        )
        self.web = Web(self.settings)
        self.provider = self._provider()
        try:
            return await deliver(self, mail)  # type: ignore[arg-type]
        finally:
            await self.web.close()

    def _provider(self) -> Any:
        if self.kind == "gmail":
            return GmailProvider(self.settings, self.web)
        if self.kind == "microsoft":
            return MicrosoftProvider(self.settings, self.web, Signals())
        return SmtpProvider(self.settings)


def settings_of(said: Mapping[str, Any], folder: Path) -> Settings:
    where = {
        name.removeprefix("OUTTRAY_").lower(): value
        for name, value in said["environment"].items()
        if name.startswith("OUTTRAY_")
    }
    return quick_settings(folder, **where)


def account_of(said: Mapping[str, Any], person: Mapping[str, Any]) -> Account:
    where = said["environment"]
    server = {
        "host": where["SANDBOX_SMTP_HOST"], "port": int(where["SANDBOX_SMTP_PORT"]), "tls": "starttls",
        "ca_file": where["SANDBOX_SMTP_CA_FILE"],
    }  # fmt: skip
    if person["provider"] == "smtp":
        login = {"username": person["address"], "password": person["secret"]}
        return Account(UUID(int=1), server["host"], server, person["address"], login)
    tokens = Refreshed(said, person)
    return Account(UUID(int=1), "sandbox", {}, person["address"], {}, frozenset(person["scopes"]), tokens)


@pytest.mark.parametrize("address", [each.address for each in PEOPLE])
def test_everybody_can_send_through_our_provider_and_the_page_shows_it(
    said: dict[str, Any], tmp_path: Path, address: str
):
    (person,) = (each for each in said["people"] if each["address"] == address)
    outcome = asyncio.run(Route(said, person, tmp_path).send("Offer <&> more"))
    assert isinstance(outcome, Sent), outcome
    (mail,) = sent(said)
    assert (mail["user"], mail["recipients"], mail["subject"]) == (address, ["bob@example.org"], "Offer <&> more")
    assert mail["text"].strip() == "Hello <b>Bob</b>"
    page = ask(said["url"])
    assert "Offer &lt;&amp;&gt; more" in page and "Hello &lt;b&gt;Bob&lt;/b&gt;" in page
    (source,) = re.findall(r'"(/source/[0-9a-f]+)"', page)
    assert "Subject: Offer <&> more" in ask(said["url"] + source)
    assert sent(said, to="bob@example.org", user=address) == [mail]
    assert sent(said, to="eve@example.org") == sent(said, subject="Invoice") == []


def test_who_lets_us_only_send_cannot_make_drafts(said: dict[str, Any], tmp_path: Path):
    (person,) = (each for each in said["people"] if each["address"] == "send@gmail.example")
    url = f"{said['environment']['OUTTRAY_GMAIL_URL']}/gmail/v1/users/me/drafts"
    token = asyncio.run(account_of(said, person).tokens.access())  # type: ignore[union-attr]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, {"message": {"raw": ""}}, Authorization=f"Bearer {token}")
    assert refused.value.code == 403


FULL = "https://mail.google.com/"
SMTP_SEND = "https://outlook.office.com/SMTP.Send"


@pytest.mark.parametrize(
    ("address", "issue", "opens"),
    [
        ("full@gmail.example", lambda s: s.google.house.access("full@gmail.example", FULL), True),
        ("full@gmail.example", lambda s: s.google.house.access("full@gmail.example", *PEOPLE[0].scopes), False),
        ("full@gmail.example", lambda s: s.google.house.access("send@gmail.example", FULL), False),
        ("full@contoso.example", lambda s: office(s, SMTP_SEND, "https://outlook.office.com"), True),
        ("full@contoso.example", lambda s: office(s, "SMTP.Send", "https://graph.microsoft.com"), False),
        ("full@contoso.example", lambda s: office(s, "IMAP.AccessAsUser.All", "https://outlook.office.com"), False),
    ],
)
def test_smtp_takes_the_token_of_its_user_for_smtp_and_no_other(
    tmp_path: Path, address: str, issue: Callable[[Sandbox], str], opens: bool
):
    with Sandbox(tmp_path) as sandbox:
        said = {"environment": sandbox.environment, "people": []}
        route = Route(said, {"provider": "smtp", "address": address, "secret": ""}, tmp_path)
        server = {**route.account.server, "auth": "xoauth2"}
        login = {"username": address, "access_token": issue(sandbox)}
        route.account = replace(route.account, server=server, credentials=login)
        assert isinstance(asyncio.run(route.send("by token")), Sent if opens else Held)
        assert len(sandbox.sent(server="smtp")) == opens


def office(sandbox: Sandbox, scope: str, audience: str) -> str:
    return sandbox.microsoft.house.issue("full@contoso.example", scope, audience)


# ── what it says ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_url_of_a_provider_that_can_be_set_leads_to_the_sandbox(said: dict[str, Any]):
    """A setting that is added later must be added here too, or a test of somebody's would reach the real provider."""
    urls = {f"OUTTRAY_{name.upper()}" for name in Settings.model_fields if name.endswith("_url")}
    ours = urls - {"OUTTRAY_DATABASE_URL", "OUTTRAY_REDIS_URL"}
    assert ours <= set(said["environment"])
    assert all(said["environment"][name].startswith("http://127.0.0.1:") for name in ours)


def test_the_settings_for_a_shell_are_read_by_one(tmp_path: Path):
    with started("--env", "--folder", str(tmp_path / "it's here")) as (process, first):
        process.send_signal(signal.SIGTERM)
        rest = rest_of(process)
        assert process.returncode == 0
    told = subprocess.run(
        ["sh", "-c", f"{first}{rest}\nprintf %s \"$SANDBOX_SMTP_CA_FILE\""], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert told.stdout == str(tmp_path / "it's here" / "tls" / "ca.pem")


def test_ctrl_c_ends_it_cleanly_and_leaves_nothing():
    with started("--json") as (process, first):
        said = json.loads(first)
        assert Path(said["folder"]).is_dir()
        process.send_signal(signal.SIGINT)
        rest = rest_of(process)
    assert (process.returncode, rest) == (0, "")
    assert not Path(said["folder"]).exists()
    with pytest.raises(urllib.error.URLError):
        ask(said["url"])


def test_for_people_it_says_where_who_and_how():
    with started() as (process, first):
        process.send_signal(signal.SIGINT)
        rest = rest_of(process)
    text = first + rest
    for expected in (
        "sent mail", "/faults", "export OUTTRAY_GRAPH_URL=", "1//sandbox-google-send",
        "outtray mailbox connect microsoft --address compose@contoso.example --scopes compose",
        "outtray.mailboxes.add_google('full@gmail.example', refresh_token=",
    ):  # fmt: skip
        assert expected in text


def test_a_port_that_is_taken_is_said(process: dict[str, Any]):
    port = process["url"].rpartition(":")[2]
    ended = CommandLine().process("sandbox", "--port", port)
    assert ended.code == 2 and "--port" in ended.err


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fault_from_the_command_line_falls_once(tmp_path: Path):
    with started("--json", "--fault", "graph-504") as (_, first):
        said = json.loads(first)
        (person,) = (each for each in said["people"] if each["address"] == "compose@contoso.example")
        assert isinstance(asyncio.run(Route(said, person, tmp_path).send("one")), Unknown)
        assert [mail["subject"] for mail in sent(said)] == ["one"], "it was taken all the same"
        assert isinstance(asyncio.run(Route(said, person, tmp_path).send("two")), Sent)


@pytest.mark.parametrize("fault", ["no-such", "gmail:{}", "google:{", "google:[]", 'google:{"stagge": 1}'])
def test_a_fault_that_there_is_not_is_a_usage_error(fault: str):
    ended = CommandLine().process("sandbox", "--fault", fault)
    assert ended.code == 2 and ended.out == ""


def test_the_button_of_a_fault_begins_it_and_another_ends_it(said: dict[str, Any]):
    url = f"{said['url']}/faults"
    assert "all is well" in ask(url)
    pressed = ask(url, b"fault=smtp-451")
    assert "451 4.3.0" in pressed and "1 in force" in pressed
    (rule,) = re.findall(r'name="forget" value="(smtp:\d+)"', pressed)
    ended = ask(url, f"forget={rule}".encode())
    assert "all is well" in ended


@pytest.mark.parametrize("server", ["google", "microsoft", "smtp"])
def test_every_server_obeys_its_commands_over_the_page(said: dict[str, Any], server: str):
    assert isinstance(json.loads(ask(f"{said['url']}/control/{server}/stats", {}))["done"], dict)
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(f"{said['url']}/control/{server}/no_such", {})
    assert "there are add_rule" in json.loads(refused.value.read())["refused"]


def test_a_page_of_somebody_else_cannot_command_it(said: dict[str, Any]):
    for path in ("forget", "faults", "control/google/stats"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{said['url']}/{path}", {}, Origin="https://elsewhere.example")
        assert refused.value.code == 403


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_named_fault_is_a_rule_of_its_server_and_is_described(fault: Any):
    rule = (SmtpRule if fault.server == "smtp" else WebRule)(**rule_of(fault.name))
    assert rule.times == 1
    assert f"| `{fault.name}` |" in (DOCS / "sandbox.md").read_text()


# ── what a mail may do to the page ──────────────────────────────────────────────────────────────────────────────────


def test_the_html_of_a_mail_stands_in_a_frame_that_may_do_nothing(said: dict[str, Any], tmp_path: Path):
    (person,) = (each for each in said["people"] if each["provider"] == "smtp")
    evil = b"Subject: x\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script><img src=http://a.example/>\"'\r\n"
    route = Route(said, person, tmp_path)
    route.web, route.provider = Web(route.settings), SmtpProvider(route.settings)
    assert isinstance(asyncio.run(deliver(route, mail_of(evil, ("bob@example.org",), person["address"]))), Sent)  # type: ignore[arg-type]
    page = ask(said["url"])
    assert "<script" not in page and "<img" not in page
    assert re.search(r'<iframe sandbox title="as HTML" srcdoc="&lt;meta http-equiv=[^"<>]*default-src', page)


# ── the guide ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_command_that_it_says_to_type_is_understood(said: dict[str, Any], tmp_path: Path):
    for command in said["commands"]:
        words = shlex.split(command.rpartition("| ")[2])
        assert CommandLine().process(*words[1:], "--help").code == 0


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(240)
def test_the_guides_example_of_a_users_own_tests_passes_as_it_stands(tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "sandbox.md").read_text(), re.DOTALL)
    conftest, tests = blocks
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_app.py").write_text(tests)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env=CommandLine().full_environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "2 passed" in ran.stdout


def test_a_sandbox_in_a_test_forgets_what_came_before(tmp_path: Path):
    with Sandbox(tmp_path) as sandbox:
        sandbox.fault("smtp-lost")
        sandbox.fault('microsoft:{"stage": "sendMail", "silent": true}')
        assert [len(each.house.script.rules) for each in sandbox.servers().values()] == [0, 1, 1]
        sandbox.forget()
        assert not any(each.house.script.rules for each in sandbox.servers().values())


def test_an_installation_that_leads_to_the_real_providers_is_not_connected(tmp_path: Path):
    with Sandbox(tmp_path) as sandbox:
        partly = {name: url for name, url in sandbox.settings.items() if name != "graph_url"}
        outtray: Any = SimpleNamespace(settings=load_settings(**partly))
        with pytest.raises(ValueError, match=r"^OUTTRAY_GRAPH_URL must lead"):
            sandbox.connect(outtray)
