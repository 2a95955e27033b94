"""Which folders hold what a mailbox sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outtray_worker.providers.smtp.imap.client import Client

FOLDERS = 3
"""Folders that are looked into at most."""

SENT, ALL, NOT_SELECTABLE = b"\\sent", b"\\all", (b"\\noselect", b"\\nonexistent")

NAMES = (
    "Sent", "Sent Items", "Sent Mail", "Sent Messages", "Gesendet", "Gesendete Elemente", "Gesendete Objekte",
    "Éléments envoyés", "Messages envoyés", "Envoyés", "Elementos enviados", "Enviados", "Itens Enviados",
    "Posta inviata", "Inviata", "Verzonden items", "Verzonden", "Skickat", "Sendt", "Lähetetyt", "Wysłane", "Odeslané",
    "Отправленные", "已发送邮件", "已发送", "送信済み",
)  # fmt: skip
"""What mail programs call that folder, the commonest first: our own collection, 2026-11. RFC 6154 names none."""

_RANKS = {name.casefold(): rank for rank, name in reversed(list(enumerate(NAMES)))}


@dataclass(frozen=True, slots=True)
class Folder:
    """`name` may be anything, an address too: it goes nowhere but to the server. `how` is for people."""

    name: str = field(repr=False)
    how: str


def sent_folders(client: Client, capabilities: frozenset[str]) -> list[Folder]:
    """The folders marked as that of sent mail; else those that are named like it, most likely first."""
    listed = client.list_folders()
    marked = _marked(listed, SENT)
    if not marked and "SPECIAL-USE" in capabilities and "LIST-EXTENDED" in capabilities:
        marked = _marked(client.special_folders(), SENT)
    if marked:
        return [Folder(name, "the folder marked as that of sent mail") for name in marked[:FOLDERS]]
    return [Folder(name, "a folder that is named like that of sent mail") for name in _named(listed)[:FOLDERS]]


def all_mail(client: Client) -> Folder | None:
    """The folder that shows all mail, at Gmail: what was sent stays there when its copy is moved."""
    found = _marked(client.list_folders(), ALL)
    return Folder(found[0], "the folder of all mail") if found else None


Listed = Sequence[tuple[tuple[bytes, ...], bytes, str]]


def _marked(listed: Listed, mark: bytes) -> list[str]:
    return [name for flags, _, name in listed if mark in _flags(flags) and _selectable(flags)]


def _named(listed: Listed) -> list[str]:
    """By their last part: where folders of a person stand under INBOX it is `INBOX.Sent`."""
    found = []
    for flags, delimiter, name in listed:
        last = name.rpartition(delimiter.decode())[2] if delimiter else name
        rank = _RANKS.get(last.casefold())
        if rank is not None and _selectable(flags):
            found.append((name.count(delimiter.decode()) if delimiter else 0, rank, name))
    return [name for _, _, name in sorted(found)]


def _flags(flags: Sequence[bytes]) -> set[bytes]:
    return {flag.lower() for flag in flags}


def _selectable(flags: Sequence[bytes]) -> bool:
    return not _flags(flags).intersection(NOT_SELECTABLE)
