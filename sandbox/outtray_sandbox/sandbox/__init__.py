"""Google, Microsoft 365 and an SMTP server on this machine, with people who have agreed already, and one page.

    with Sandbox() as sandbox:                     in a test, or as a process: outtray sandbox
        sandbox.environment                        what points a deployment at it, as environment variables
        sandbox.connect(outtray)                   provider apps and mailboxes, ready to send
        …
        (mail,) = sandbox.sent(to="bob@example.org")
        sandbox.fault("gmail-lost")                and every rule and command of `google`, `microsoft`, `smtp`

It needs no database. docs/sandbox.md is its guide.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from outtray_sandbox.google import GoogleHouse, GoogleServer
from outtray_sandbox.microsoft import MicrosoftHouse, MicrosoftServer
from outtray_sandbox.sandbox.connecting import connect
from outtray_sandbox.sandbox.faults import read_fault
from outtray_sandbox.sandbox.mails import Mail, mails_of, newest_first
from outtray_sandbox.sandbox.people import APPS, PEOPLE, opens_smtp, passwords, settle_at_google, settle_at_microsoft
from outtray_sandbox.sandbox.server import FrontServer
from outtray_sandbox.smtp import SmtpServer
from outtray_sandbox.web import Ledger

if TYPE_CHECKING:
    from outtray import Outtray

__all__ = ["APPS", "PEOPLE", "Mail", "Ports", "Sandbox"]

KEPT_SIZE = 1 << 20
"""Largest mail in bytes that the page can show."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Of loopback; 0 picks a free one."""

    page: int = 0
    google: int = 0
    microsoft: int = 0
    smtp: int = 0

    @classmethod
    def following(cls, first: int) -> Self:
        """Four in a row."""
        return cls(first, first + 1, first + 2, first + 3)


class Sandbox:
    """All servers, from `__enter__` to `__exit__`. Each is there under its own name for tests that want more of it.

    `folder` keeps what they took (`google.jsonl`, `microsoft.jsonl`, `smtp.jsonl`) and the authority's certificate;
    by default a new one that is removed at the end.
    """

    google: GoogleServer
    microsoft: MicrosoftServer
    smtp: SmtpServer
    front: FrontServer

    def __init__(self, folder: Path | None = None, *, ports: Ports | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="outtray-sandbox-"))
        self._is_ours = folder is None
        self._ports = ports or Ports()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._is_ours:
                stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        google, microsoft = GoogleHouse(self._ledger("google")), MicrosoftHouse(self._ledger("microsoft"))
        settle_at_google(google)
        settle_at_microsoft(microsoft)
        self.google = stack.enter_context(GoogleServer(google, port=self._ports.google))
        self.microsoft = stack.enter_context(MicrosoftServer(microsoft, port=self._ports.microsoft))
        self.smtp = stack.enter_context(
            SmtpServer(
                self.folder / "smtp.jsonl", port=self._ports.smtp, users=passwords(), tls="starttls",
                keep_bodies=KEPT_SIZE, tokens=partial(opens_smtp, google, microsoft),
            )
        )  # fmt: skip
        self.front = stack.enter_context(FrontServer(self, self._ports.page))

    def _ledger(self, server: str) -> Ledger:
        return Ledger(self.folder / f"{server}.jsonl")

    # ── where it is ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        """The page of everything that was sent."""
        return self.front.url

    @property
    def settings(self) -> Mapping[str, str]:
        """Every setting of Outtray's that leads here instead of to the real ones."""
        return {
            "gmail_url": self.google.url,
            "google_auth_url": self.google.auth_url,
            "google_token_url": self.google.token_url,
            "google_revoke_url": self.google.revoke_url,
            "graph_url": self.microsoft.graph_url,
            "entra_url": self.microsoft.entra_url,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables; and where the SMTP server is, which Outtray has per mailbox."""
        smtp = {"host": self.smtp.host, "port": str(self.smtp.port), "ca_file": str(self.smtp.ca_file)}
        return {
            **{f"OUTTRAY_{name.upper()}": value for name, value in self.settings.items()},
            **{f"SANDBOX_SMTP_{name.upper()}": value for name, value in smtp.items()},
            "SANDBOX_URL": self.url,
        }

    # ── what a test does with it ────────────────────────────────────────────────────────────────────────────────

    def connect(self, outtray: Outtray, *addresses: str) -> None:
        """Add the provider apps, and these people's mailboxes, by default everybody's, to an installation.

        Raises `ValueError` where its settings lead elsewhere: what it sends would go to the real providers.
        """
        elsewhere = [name for name, url in self.settings.items() if getattr(outtray.settings, name) != url]
        if elsewhere:
            names = ", ".join(f"OUTTRAY_{name.upper()}" for name in elsewhere)
            raise ValueError(f"{names} must lead to the sandbox first: set what its `environment` says")
        connect(outtray, self.smtp, addresses or tuple(each.address for each in PEOPLE))

    def sent(
        self, *, to: str | None = None, user: str | None = None, subject: str | None = None, server: str | None = None
    ) -> list[Mail]:
        """What was sent, oldest first: to this address, by this user, with this in its subject, by this server."""
        found = (each for each in self._mails() if each.fits(to, user, subject, server))
        return newest_first(found)[::-1]

    def _mails(self) -> Iterator[Mail]:
        yield from mails_of("google", list(self.google.house.sent))
        yield from mails_of("microsoft", list(self.microsoft.house.sent))
        yield from mails_of("smtp", list(self.smtp.house.recent))

    def servers(self) -> dict[str, Any]:
        """Those that can be told to misbehave, by name."""
        return {"google": self.google, "microsoft": self.microsoft, "smtp": self.smtp}

    def fault(self, text: str) -> int:
        """Begin a fault by its name, or a rule: 'google:{"stage": "drafts.send"}'. Returns the rule's id.

        Raises `ValueError` that names the faults there are, or what is wrong with the rule.
        """
        server, fields = read_fault(text)
        try:
            return int(self.servers()[server].add_rule(**fields))
        except TypeError as error:
            raise ValueError(f"no such rule: {error}") from None

    def forget(self) -> None:
        """Begin anew between two tests: no faults, and an empty page. What the servers took stays in their ledgers."""
        for server in self.servers().values():
            server.forget()
        self.google.house.sent.clear()
        self.microsoft.house.sent.clear()
        self.smtp.house.recent.clear()
