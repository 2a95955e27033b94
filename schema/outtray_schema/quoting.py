"""Quoting: the body of a forward, and a stored mail taken apart again into what it was made of."""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from email import message_from_bytes, policy
from email.message import Message as Part
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from outtray_schema.address import Address, refuse_control_characters
from outtray_schema.attachment import Attachment
from outtray_schema.errors import InvalidMessage
from outtray_schema.message import Message

if TYPE_CHECKING:
    from outtray_schema.answering import Original

MOST = 25 * 1024 * 1024
"""Bytes of an original, and of what is added to it, that can be forwarded. A forward is put together in memory, and
Gmail lets people attach 25 MB in all (support.google.com/mail/answer/6584, 2026-11): in base64 more would not leave."""

_HEADERS = 1024 * 1024
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")
_INLINE_ID = re.compile(r"[A-Za-z0-9._+@-]{1,128}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")
# Bounded, since what they read was written by anybody: none of them may look at the same stretch again and again.
_BODY = re.compile(r"<body\b[^>]{0,2000}>(.*?)(?:</body\s{0,9}>|\Z)", re.IGNORECASE | re.DOTALL)
_BODY_END = re.compile(r"</(?:body|html)\s{0,9}>", re.IGNORECASE)
_WRAPPING = re.compile(r"<!doctype[^>]{0,2000}>|</?(?:html|body)\b[^>]{0,2000}>", re.IGNORECASE)
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]{0,20})\b[^<>]{0,2000}>")
_STYLE, _SCRIPT, _HEAD, _COMMENT = (
    (re.compile(begin, re.IGNORECASE), re.compile(end, re.IGNORECASE))
    for begin, end in ((r"<style\b", r"</style\s{0,9}>"), (r"<script\b", r"</script\s{0,9}>"),
                       (r"<head\b", r"</head\s{0,9}>"), (r"<!--", r"-->"))
)  # fmt: skip
_LINES = frozenset({"br", "p", "div", "tr", "li", "h1", "h2", "h3", "h4", "blockquote", "table", "ul", "ol"})


def forwarded(message: Message, original: Original) -> dict[str, Any]:
    """`text`, `html` and `attachments` of a forward: the message's own as a comment, then the original."""
    text = _text(message, original) if message.text is not None or message.html is None else None
    html = _html(message, original) if message.html is not None or original.html is not None else None
    return {"text": text, "html": html, "attachments": _files(message, original, with_html=html is not None)}


def sendable(text: str | None) -> str | None:
    """A foreign body without what no mail can carry."""
    return None if text is None else _UNSENDABLE.sub("\ufffd", text)


def foreign_file(filename: str, content: bytes, content_type: str, inline_id: str | None = None) -> Attachment:
    """A file of somebody else's mail as an attachment of ours: its name and type are mended, not refused."""
    kind = content_type.strip()
    composite = kind.lower().startswith(("multipart/", "message/"))
    if composite or not _MEDIA_TYPE.fullmatch(kind):
        kind = "application/octet-stream"
    name = re.sub(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+|=\?", "_", filename)
    name = re.sub(r"^[\s._]+|[\s._]+$", "", name) or ("message.eml" if composite else "attachment")
    inline = inline_id if inline_id and _INLINE_ID.fullmatch(inline_id) else None
    return Attachment(_within(name, 255), content, content_type=kind, inline_id=inline)


def _within(name: str, most: int) -> str:
    """A file's name of at most so many bytes, with its ending."""
    stem, dot, ending = name.rpartition(".")
    if len(name.encode()) <= most or not dot or len(ending) > 10:
        return name.encode()[:most].decode(errors="ignore")
    return f"{stem.encode()[: most - len(ending.encode()) - 1].decode(errors='ignore')}.{ending}"


# ── the quotation ───────────────────────────────────────────────────────────────────────────────────────────────────


def _lines_about(original: Original) -> Iterator[tuple[str, str]]:
    if original.sender:
        yield "From", _named(original.sender)
    if original.date:
        yield "Date", format_datetime(original.date)
    yield "Subject", original.subject
    for name, people in (("To", original.to), ("Cc", original.cc)):
        if people:
            yield name, ", ".join(map(_named, people))


def _named(person: Address) -> str:
    return f"{person.name} <{person.email}>" if person.name else person.email


_RULE = "---------- Forwarded message ---------"


def _text(message: Message, original: Original) -> str:
    quoted = original.text if original.text is not None else plain_text(original.html or "")
    about = "\n".join(f"{name}: {value}" for name, value in _lines_about(original))
    comment = f"{message.text.rstrip()}\n\n" if message.text and message.text.strip() else ""
    return f"{comment}{_RULE}\n{about}\n\n{quoted}"


def _html(message: Message, original: Original) -> str:
    comment = message.html if message.html is not None else _as_html(message.text or "")
    about = "<br>".join(f"{name}: {markup.escape(value)}" for name, value in _lines_about(original))
    quoted = _inner(original.html) if original.html is not None else _as_html(original.text or "")
    quotation = f"<div><br>{markup.escape(_RULE)}<br>{about}<br><br></div><div>{quoted}</div>"
    end = _BODY_END.search(comment)
    return comment + quotation if end is None else comment[: end.start()] + quotation + comment[end.start() :]


def _as_html(text: str) -> str:
    return f'<div style="white-space: pre-wrap">{markup.escape(text)}</div>' if text else ""


def _inner(html: str) -> str:
    """What stands in a document's body, with its styles, so that it can stand within another one."""
    body = _BODY.search(html)
    if body is None:
        return _WRAPPING.sub("", _without(html, _HEAD))
    styles = "".join(html[start:end] for start, end in _stretches(html[: body.start()], _STYLE))
    return styles + body[1]


def plain_text(html: str) -> str:
    """What a reader sees of an html body, roughly: words and lines."""
    for stretch in (_COMMENT, _SCRIPT, _STYLE, _HEAD):
        html = _without(html, stretch)
    text = markup.unescape(_TAG.sub(lambda tag: "\n" if tag[1].lower() in _LINES else "", html))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


_Stretch = tuple[re.Pattern[str], re.Pattern[str]]


def _stretches(html: str, stretch: _Stretch) -> Iterator[tuple[int, int]]:
    """Where each stretch begins and ends; one without an end is none."""
    at = 0
    while (begin := stretch[0].search(html, at)) and (end := stretch[1].search(html, begin.end())):
        yield begin.start(), end.end()
        at = end.end()


def _without(html: str, stretch: _Stretch) -> str:
    kept, at = [], 0
    for start, end in _stretches(html, stretch):
        kept.append(html[at:start])
        at = end
    return "".join([*kept, html[at:]])


def _files(message: Message, original: Original, with_html: bool) -> tuple[Attachment, ...]:
    """All files of both. An inline image stays one where the html can show it and its id is not taken."""
    taken = {each.inline_id for each in message.attachments}
    found = list(message.attachments)
    for each in original.attachments:
        shown = each.inline_id is not None and with_html and each.inline_id not in taken
        taken.add(each.inline_id)
        found.append(each if shown or each.inline_id is None else _as_file(each))
    return tuple(found)


def _as_file(image: Attachment) -> Attachment:
    return Attachment(image.filename, image.content, content_type=image.content_type)


# ── a stored mail, taken apart ──────────────────────────────────────────────────────────────────────────────────────


def parts_of(mime: bytes) -> tuple[str | None, str | None, tuple[Attachment, ...]]:
    """The text, the html and the files that a mail of ours was frozen from. CPU: some 10 ms per MB."""
    text: str | None = None
    html: str | None = None
    files: list[Attachment] = []
    for part in message_from_bytes(mime).walk():
        if part.is_multipart():
            continue
        kind, is_file = part.get_content_type(), part.get_filename() is not None
        if not is_file and kind == "text/plain" and text is None:
            text = _decoded(part)
        elif not is_file and kind == "text/html" and html is None:
            html = _decoded(part)
        else:
            files.append(_file(part, kind))
    return text, html, tuple(files)


def date_of(mime: bytes) -> datetime | None:
    """When a mail of ours says that it was written."""
    date = message_from_bytes(mime[:_HEADERS], policy=policy.compat32).get("Date")
    return parsedate_to_datetime(str(date)) if date else None


def _decoded(part: Part) -> str:
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    try:
        decoded = data.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        decoded = data.decode("utf-8", "replace")
    return decoded.replace("\r\n", "\n").removesuffix("\n")


_NAMED_TYPE = re.compile(r';\s*name="[^"]*"$')
"""The file's name behind its type, as `mime.py` puts it there: it is put there anew."""


def _file(part: Part, kind: str) -> Attachment:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    content_type = _NAMED_TYPE.sub("", " ".join(str(part.get("Content-Type", kind)).split()))
    inline_id = str(part.get("Content-ID", "")).strip("<> ") or None
    try:
        refuse_control_characters(content_type)
        return Attachment(part.get_filename() or "attachment", content, content_type=content_type, inline_id=inline_id)
    except (InvalidMessage, ValueError):
        return foreign_file(part.get_filename() or "", content, kind, inline_id)


def size_of(attachments: Iterable[Attachment], *bodies: str | None) -> int:
    """Bytes of files and bodies together."""
    return sum(each.size for each in attachments) + sum(len(body.encode()) for body in bodies if body)
