"""Files that are stored apart from the messages that carry them: once per app, however many they are.

A file of 16 KiB or more is looked for by its keyed hash before its messages are frozen. In the transaction that stores
them, what was found is held (`FOR KEY SHARE`, which any number of transactions may do at once), so that pruning cannot
take it away meanwhile; what is not there is stored; and each message's content says what it needs. Two transactions
that bring one new file at the same time store it twice: neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from outtray.door import Door
from outtray.plan import Plan, Statement, rows
from outtray_schema.attachment import Attachment
from outtray_schema.content import sealed_file
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.ids import new_id
from outtray_schema.message import Message
from outtray_schema.mime import base64_size, encoded_file

LEAST = 16 * 1024
"""Bytes from which a file is stored apart: below, a row of its own costs more than it spares. Our choice."""

# Finds files of an app by their hashes, the newest of each; locks nothing.
FIND = """
SELECT DISTINCT ON (a.digest) a.digest, a.id, a.size FROM outtray.attachment a
WHERE a.app_id = %(app)s AND a.digest = ANY(%(digests)s::bytea[]) ORDER BY a.digest, a.id DESC
"""

# Holds files against pruning until this transaction ends; waits for nobody but a pruning that has begun.
HOLD = "SELECT a.id FROM outtray.attachment a WHERE a.id = ANY(%(ids)s::uuid[]) FOR KEY SHARE"

# Inserts a file, and its pieces.
INSERT = """
INSERT INTO outtray.attachment (id, app_id, digest, size) VALUES (%(id)s, %(app)s, %(digest)s, %(size)s)
ON CONFLICT (id) DO NOTHING RETURNING id
"""
INSERT_CHUNK = "INSERT INTO outtray.attachment_chunk (attachment_id, n, data) VALUES (%(id)b, %(n)b, %(data)b)"

# Says which contents need which files; waits for nobody, since the files are held.
REFER = """
INSERT INTO outtray.content_attachment (message_id, attachment_id)
SELECT * FROM unnest(%(messages)s::uuid[], %(files)s::uuid[])
"""


@dataclass(frozen=True, slots=True)
class File:
    """A file that is stored apart, and what it is read from where it is not there yet."""

    id: UUID
    size: int
    """Bytes of base64."""
    digest: bytes
    """SHA-256 of its bytes."""
    keyed: bytes = field(repr=False)
    attachment: Attachment = field(repr=False)
    index: int

    def encoded(self) -> Iterator[bytes]:
        """Its base64. Raises `InvalidMessage` if it is no longer what it was."""
        size = 0
        for piece in encoded_file(self.index, self.attachment, self.digest):
            size += len(piece)
            yield piece
        if size != self.size:
            reason = "the file changed while it was read; enqueue the message again"
            raise InvalidMessage(Problem(f"attachments[{self.index}].path", reason))


Files = Mapping[bytes, File]
"""By SHA-256."""


def find_files(door: Door, app_id: UUID, messages: Sequence[Message]) -> Plan[Files]:
    """The files of these messages that are stored apart, there already or not. No statement where there are none."""
    wanted: dict[bytes, tuple[int, Attachment]] = {}
    for message in messages:
        for index, each in enumerate(message.attachments):
            if (digest := _digest(each)) is not None:
                wanted.setdefault(digest, (index, each))
    if not wanted:
        return {}
    keyed = {digest: door.vault.keyed_hash(app_id, "attachment", digest) for digest in wanted}
    found = yield from rows(FIND, app=app_id, digests=list(keyed.values()))
    there = {bytes(row["digest"]): row for row in found}
    files = {}
    for digest, (index, each) in wanted.items():
        row = there.get(keyed[digest])
        id, size = (row["id"], row["size"]) if row else (new_id(), base64_size(each.size))
        files[digest] = File(id, size, digest, keyed[digest], each, index)
    return files


def files_of(message: Message, files: Files) -> dict[int, File]:
    """Those of a message's attachments that are stored apart, by their position."""
    if not files:
        return {}
    digests = {index: _digest(each) for index, each in enumerate(message.attachments)}
    return {index: files[digest] for index, digest in digests.items() if digest is not None and digest in files}


def hold_files(door: Door, app_id: UUID, files: Iterable[File]) -> Plan[None]:
    """Make sure that they are there, and stay until the end of the transaction."""
    wanted = {file.id: file for file in files}
    if not wanted:
        return
    held = yield from rows(HOLD, ids=list(wanted))
    for id in sorted(wanted.keys() - {row["id"] for row in held}):
        file = wanted[id]
        made = yield from rows(INSERT, id=id, app=app_id, digest=file.keyed, size=file.size)
        for n, data in sealed_file(door.vault, id, file.encoded()) if made else ():
            yield Statement(INSERT_CHUNK, {"id": id, "n": n, "data": data})


def refer_to_files(needed: Mapping[UUID, Iterable[File]]) -> Plan[None]:
    """Say what these messages' contents need."""
    pairs = [(message, id) for message, files in needed.items() for id in {file.id for file in files}]
    if pairs:
        yield Statement(REFER, {"messages": [message for message, _ in pairs], "files": [id for _, id in pairs]})


def _digest(attachment: Attachment) -> bytes | None:
    """None where it is stored with its message; also if it cannot be read any more, as freezing it will say."""
    try:
        return attachment.digest() if attachment.size >= LEAST else None
    except OSError:
        return None
