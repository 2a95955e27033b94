"""What the sandbox's IMAP server keeps: folders of each user, when their mails can be seen, and how it behaves."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from outtray_sandbox.accepted import Accepted
from outtray_sandbox.imap.script import Rule, Script, Stage


@dataclass(frozen=True, slots=True)
class Stored:
    """A mail's headers, and from when on it is listed and found; seconds since the epoch on the server's clock."""

    uid: int
    headers: bytes = field(repr=False)
    size: int
    at: float
    listed_from: float
    found_from: float
    gmail_id: int

    def values(self, name: str) -> list[str]:
        """What stands in its headers of that name, unfolded."""
        text = re.sub(r"\r\n(?=[ \t])", "", self.headers.decode("utf-8", "replace"))
        lines = (line.partition(":") for line in text.split("\r\n"))
        return [value.strip() for each, _, value in lines if each.lower() == name.lower()]


@dataclass
class Folder:
    """`name` as people read it. `flags` are what LIST shows; special uses only as `Post.special_use` says."""

    name: str
    special: str = ""
    selectable: bool = True
    mails: list[Stored] = field(default_factory=list)
    uid_next: int = 1


PLAIN = (("INBOX", ""), ("Sent", "\\Sent"), ("Drafts", "\\Drafts"))
GMAIL = (("INBOX", ""), ("[Gmail]/Sent Mail", "\\Sent"), ("[Gmail]/All Mail", "\\All"), ("[Gmail]/Drafts", "\\Drafts"))


@dataclass
class Post:
    """One server's mailboxes and manners. All methods are safe from any thread."""

    knows: Callable[[str, str, str], bool]
    """Whether this secret opens that user's mailbox by that mechanism."""
    files_sent: bool = False
    """Whether what the SMTP server takes is filed in Sent."""
    lag: float = 0.0
    """Seconds from then until the copy is there."""
    index_lag: float = 0.0
    """Seconds until searches find what is there: listed it is before."""
    folders: tuple[tuple[str, str], ...] | None = None
    """Names and special uses of every user's folders; default: plain ones, or Gmail's."""
    delimiter: str = "/"
    special_use: Literal["always", "asked", "never"] = "always"
    gmail: bool = False
    """X-GM-EXT-1: X-GM-RAW, X-GM-MSGID, X-GM-THRID; and its folders."""
    literal_names: bool = False
    """Give the names of folders as literals, as RFC 3501 lets any server."""
    mechanisms: tuple[str, ...] = ("PLAIN", "XOAUTH2", "OAUTHBEARER")
    login: bool = True
    searches_headers: bool = True
    """Without it SEARCH HEADER is refused for what is not in the envelope, as some servers do."""
    replaces_ids: bool = False
    """File the copy under a Message-ID of its own and keep the old one beside it, as Gmail does if it has no domain."""

    def __post_init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.clock_shift = 0.0
        self.script = Script()
        self._boxes: dict[str, list[Folder]] = {}
        self._lock = threading.RLock()
        self._gmail_ids = 1_700_000_000_000_000_000

    def now(self) -> float:
        return time.time() + self.clock_shift

    def box(self, user: str) -> list[Folder]:
        """The user's folders."""
        with self._lock:
            if user not in self._boxes:
                names = self.folders or (GMAIL if self.gmail else PLAIN)
                self._boxes[user] = [Folder(name, special) for name, special in names]
            return self._boxes[user]

    def folder(self, user: str, name: str) -> Folder | None:
        return next((each for each in self.box(user) if each.name == name), None)

    def listed(self, folder: Folder) -> list[Stored]:
        """What lies there by now."""
        with self._lock:
            return [mail for mail in folder.mails if mail.listed_from <= self.now()]

    # ── mail comes in ───────────────────────────────────────────────────────────────────────────────────────────

    def file_copy(self, accepted: Accepted, head: bytes) -> None:
        """The SMTP server took a mail. A provider that files it may do so before its answer."""
        if not self.files_sent:
            return
        headers = head.partition(b"\r\n\r\n")[0] + b"\r\n"
        if self.replaces_ids:
            headers = re.sub(rb"(?im)^(message-id):", rb"X-Google-Original-Message-ID:", headers)
            headers = b"Message-ID: <%d@mx.google.com>\r\n" % self._gmail_ids + headers
        with self._lock:
            self._gmail_ids += 1
            for folder in self.box(accepted.user):
                if folder.special in ("\\Sent", "\\All"):
                    self._add(folder, headers, accepted.size, self.lag)

    def add(self, user: str, folder: str, headers: bytes, at: float | None = None, size: int | None = None) -> None:
        """Put a mail there by hand: a person's own, or one that APPEND brought. Raises `KeyError`."""
        found = self.folder(user, folder)
        if found is None:
            raise KeyError(folder)
        with self._lock:
            self._gmail_ids += 1
            self._add(found, headers, len(headers) if size is None else size, 0.0, at)

    def _add(self, folder: Folder, headers: bytes, size: int, lag: float, at: float | None = None) -> None:
        listed = self.now() + lag
        found = listed + self.index_lag
        folder.mails.append(
            Stored(folder.uid_next, headers, size, listed if at is None else at, listed, found, self._gmail_ids)
        )
        folder.uid_next += 1

    # ── what tests and demo command ─────────────────────────────────────────────────────────────────────────────

    def add_rule(self, **fields: Any) -> int:
        """Begin a `Rule`, given by its fields; returns its id."""
        return self.script.add(Rule(**fields))

    def forget(self, rule_id: int | None = None) -> None:
        """End one rule, or all."""
        self.script.forget(rule_id)

    def rule(self, stage: Stage, user: str) -> Rule | None:
        """The rule to play now, counted as used."""
        with self._lock:
            self.seen[stage] += 1
        return self.script.find(stage, user)

    def file_sent(self, files: bool) -> None:
        """From now on copies are filed, or not."""
        self.files_sent = files

    def set_lag(self, lag: float, index_lag: float = 0.0) -> None:
        self.lag, self.index_lag = lag, index_lag

    def shift_clock(self, seconds: float) -> None:
        """Move the server's clock, on top of earlier moves."""
        self.clock_shift += seconds

    def stats(self) -> dict[str, int]:
        """How often each stage was reached."""
        return dict(self.seen)


COMMANDS = ("add_rule", "forget", "file_sent", "set_lag", "shift_clock", "stats")
