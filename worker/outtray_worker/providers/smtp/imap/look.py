"""One look: searched for by Message-ID and by our key, then the newest are read. What it proves is said with it.

A search finds by substring, and by an index that may lag: what it found is read and compared, and what it did not find
is looked for among the newest, whose headers are read one by one. Absence is said only of a folder that was read back
to before the handover, and only where the provider itself files what it sends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.message import Message
from email.parser import BytesHeaderParser
from functools import partial
from typing import Any

from outtray_schema.outcome import Sent
from outtray_worker.providers import Finding, Trace
from outtray_worker.providers.smtp.imap.client import Client
from outtray_worker.providers.smtp.imap.folders import Folder, all_mail, sent_folders
from outtray_worker.providers.smtp.imap.line import Line
from outtray_worker.providers.smtp.imap.troubles import Refused, translated

NEWEST = 200
"""Headers that are read of a folder: some 300 bytes each."""
HITS = 20
"""Messages that are read of what a search found: one is what we hope for."""
BEFORE = timedelta(minutes=5)
"""How far before the handover the look goes back: the two clocks need not agree."""
LEARNED = timedelta(days=7)
"""How old the copy of another mail of ours may be that shows that the provider files them: it may stop to. Our choice.
"""
GMAIL = "X-GM-EXT-1"
ORIGINAL_ID = "X-Google-Original-Message-ID"
"""Where Gmail keeps a Message-ID that it replaced, one whose domain is none (archived mail, 2020 to 2026)."""


@dataclass(slots=True)
class Looked:
    """Where and by what was looked, so far."""

    said: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "; ".join(self.said) or "nowhere yet"


@dataclass(frozen=True, slots=True)
class Check:
    """What a mailbox's IMAP server showed: for `outtray mailbox test`."""

    place: str
    tls: str
    mechanism: str
    sent: str
    """How the folder of sent mail was found."""
    gmail_search: bool


@dataclass(frozen=True, slots=True)
class Copy:
    """A message's headers that tell whose it is."""

    headers: Message = field(repr=False)
    at: datetime | None
    gmail_id: int | None = None
    gmail_thread: int | None = None

    def is_ours(self, trace: Trace, key_header: str) -> bool:
        keys = {str(each).strip() for each in self.headers.get_all(key_header, [])}
        return str(trace.message_id) in keys or (
            not trace.key_only and trace.rfc_message_id in self.ids and self._may_be_of(trace)
        )

    def _may_be_of(self, trace: Trace) -> bool:
        """A Message-ID that a raw mail brought may be that of an older mail of the mailbox's person."""
        if str(trace.message_id) in trace.rfc_message_id:
            return True
        return self.at is not None and self.at >= trace.handed_at - BEFORE

    @property
    def ids(self) -> set[str]:
        names = ("Message-ID", ORIGINAL_ID)
        return {"".join(str(each).split()) for name in names for each in self.headers.get_all(name, [])}

    @property
    def rfc_message_id(self) -> str | None:
        found = "".join(str(self.headers.get("Message-ID", "")).split())
        return found or None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one folder showed."""

    copy: Copy | None = None
    by: str = ""
    back_to_handover: bool = False
    """Everything that came after the handover was read."""
    files_copies: bool = False
    """A copy of another of our mails lies there, and it is not old."""
    searched: bool = False
    """The server searched for it, and found nothing."""


async def look(line: Line, trace: Trace, key_header: str, looked: Looked) -> Finding:
    """Raises what keeps it from looking; `looked` says how far it came."""
    folders = await line.run(lambda client: sent_folders(client, line.capabilities))
    if not folders:
        looked.said.append(f"no folder of sent mail was found at {line.place.text}")
    seen = []
    for folder in folders:
        seen.append(await _in_folder(line, folder, trace, key_header, looked))
        if copy := seen[-1].copy:
            return _sent(copy, seen[-1].by, looked, trace)
    if (
        GMAIL in line.capabilities
        and not trace.key_only
        and (copy := await _in_all_mail(line, trace, key_header, looked))
    ):
        return _sent(copy, "among all mail, by its Message-ID", looked, trace)
    return Finding(_absence(line, seen, looked), looked.text)


async def look_for_copy(line: Line, trace: Trace, key_header: str, looked: Looked) -> tuple[Folder | None, bool | None]:
    """The folder for sent mail, if there is one, and whether a copy lies there. None: nobody can tell."""
    folders = await line.run(lambda client: sent_folders(client, line.capabilities))
    for folder in folders:
        seen = await _in_folder(line, folder, trace, key_header, looked)
        if seen.copy:
            return folder, True
        if not (seen.searched or seen.back_to_handover):
            return folder, None
    if folders and GMAIL in line.capabilities and await _in_all_mail(line, trace, key_header, looked):
        return folders[0], True
    return (folders[0] if folders else None), False


def _absence(line: Line, seen: Sequence[Seen], looked: Looked) -> Any:
    files = line.place.files_sent
    if files is None:
        files = any(each.files_copies for each in seen)
        looked.said.append(
            "copies of other mails of ours lie there" if files else "no sign that the provider files copies there"
        )
    elif not files:
        looked.said.append("the provider files no copies there")
    return "absent" if files and seen and all(each.back_to_handover for each in seen) else "nothing"


async def _in_folder(line: Line, folder: Folder, trace: Trace, key_header: str, looked: Looked) -> Seen:
    looked.said.append(f"{folder.how} at {line.place.text}")
    found = await line.run(lambda client: client.select_folder(folder.name, readonly=True))
    gmail = GMAIL in line.capabilities
    searched = False
    searches = (("its Message-ID", "Message-ID", trace.rfc_message_id), ("our key", key_header, str(trace.message_id)))
    for by, header, value in searches[trace.key_only :]:
        copies = await line.run(
            partial(_search, criteria=["HEADER", header, value], key_header=key_header, gmail=gmail)
        )
        searched = searched or copies is not None
        looked.said.append(f"by {by}" + (" (which the server refused to search for)" if copies is None else ""))
        if copy := next((each for each in copies or () if each.is_ours(trace, key_header)), None):
            return Seen(copy, f"in {folder.how}, by {by}")
    exists = int(found.get(b"EXISTS") or 0)
    newest = await line.run(
        lambda client: _read(client, range(max(1, exists - NEWEST + 1), exists + 1), key_header, gmail)
    )
    return replace(_among_newest(newest, exists, folder, trace, key_header, looked), searched=searched)


def _among_newest(
    newest: Sequence[Copy], exists: int, folder: Folder, trace: Trace, key_header: str, looked: Looked
) -> Seen:
    if copy := next((each for each in newest if each.is_ours(trace, key_header)), None):
        looked.said.append(f"the newest {len(newest)}")
        return Seen(copy, f"in {folder.how}, among the newest")
    whole = len(newest) >= exists
    oldest = newest[0].at if newest else None
    back = whole or (len(newest) == NEWEST and oldest is not None and oldest < trace.handed_at - BEFORE)
    reach = "" if back else ", not back to the handover"
    looked.said.append(f"all {exists}" if whole else f"the newest {len(newest)}{reach}")
    others = (each for each in newest if each.headers.get(key_header) is not None and each.at is not None)
    return Seen(
        back_to_handover=back,
        files_copies=any(each.at is not None and each.at > trace.handed_at - LEARNED for each in others),
    )


async def _in_all_mail(line: Line, trace: Trace, key_header: str, looked: Looked) -> Copy | None:
    """By Gmail's own search, whose index lags: finding nothing there means nothing."""
    folder = await line.run(all_mail)
    if folder is None:
        return None
    looked.said.append("all mail, by Gmail's own search")
    query = f"rfc822msgid:{trace.rfc_message_id.strip('<>')}"

    def steps(client: Client) -> list[Copy] | None:
        client.select_folder(folder.name, readonly=True)
        return _search(client, ["X-GM-RAW", query], key_header, True)

    copies = await line.run(steps)
    return next((each for each in copies or () if each.is_ours(trace, key_header)), None)


# ── in a thread ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _search(client: Client, criteria: list[str], key_header: str, gmail: bool) -> list[Copy] | None:
    """What a search finds, read. None where the server refuses to search like that."""
    found = translated(lambda: client.search(criteria))
    if isinstance(found, Refused):
        return None
    if isinstance(found, Exception):
        raise found
    return _read(client, sorted(found)[-HITS:], key_header, gmail)


def _read(client: Client, numbers: Sequence[int], key_header: str, gmail: bool) -> list[Copy]:
    """The headers of those messages, oldest arrival first. `BODY.PEEK` leaves them unread, as they were."""
    if not numbers:
        return []
    fields = f"BODY.PEEK[HEADER.FIELDS (MESSAGE-ID {ORIGINAL_ID.upper()} {key_header.upper()})]"
    items = ["INTERNALDATE", fields, *(("X-GM-MSGID", "X-GM-THRID") if gmail else ())]
    fetched = client.fetch(list(numbers), items)
    return list(_copies(fetched))


def _copies(fetched: Mapping[int, Mapping[bytes, Any]]) -> Iterator[Copy]:
    for number in sorted(fetched):
        said = fetched[number]
        block = next((value for name, value in said.items() if name.startswith(b"BODY[HEADER")), None)
        headers = BytesHeaderParser().parsebytes(block if isinstance(block, bytes) else b"")
        yield Copy(headers, said.get(b"INTERNALDATE"), said.get(b"X-GM-MSGID"), said.get(b"X-GM-THRID"))


def _sent(copy: Copy, by: str, looked: Looked, trace: Trace) -> Finding:
    """Gmail's numbers are the ids of its API, written in another base (its page of IMAP extensions, 2026-11)."""
    sent = Sent(
        f"{copy.gmail_id:x}" if copy.gmail_id else None,
        copy.rfc_message_id or trace.rfc_message_id,
        f"{copy.gmail_thread:x}" if copy.gmail_thread else trace.conversation_id,
        {"found": by},
    )
    return Finding("sent", looked.text, sent)
