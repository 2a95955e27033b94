"""The checks at the door: each takes what the caller wrote for one field and returns it in the form that is kept.

They raise `ValueError` with the cure, or `Refusal` where several items of one field are wrong.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote, unquote
from uuid import UUID

from outtray_schema.address import Address, checked_email, parse_address, refuse_control_characters
from outtray_schema.attachment import Attachment, attachment_from_json
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.invitation import checked_invitation
from outtray_schema.raw import checked_raw
from outtray_schema.settings import parse_duration
from outtray_schema.windows import Window, parse_window

_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_OUR_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Without what would mean something in a URL: ids of Graph are base64 in its URL-safe form, or with + / and = (ids of
# items in Outlook, docs, 2026-11).
_PROVIDER_ID = re.compile(r"[A-Za-z0-9+/=_-]{4,900}")
_HTTPS = re.compile(r"https://[A-Za-z0-9.\[\]:-]+(?:[/?#][!#-;=?-Z\[\]_a-z~]*)?")
_URI_REST = re.compile(r"(?:\?[!#-;=?-Z_a-z~]+)?")
_SURROGATE = re.compile("[\x00\ud800-\udfff]")

# PROVIDERS 6 and RFC 5322 3.6: what says who wrote to whom, when and how is ours or has a field of its own.
_OWN_FIELD = {
    "from": "from", "to": "to", "cc": "cc", "bcc": "bcc", "reply-to": "reply_to", "subject": "subject",
    "in-reply-to": "in_reply_to", "references": "references", "date": "send_at", "importance": "importance",
    "x-priority": "importance", "disposition-notification-to": "request_read_receipt",
}  # fmt: skip
_RESERVED = frozenset({
    "sender", "message-id", "received", "return-path", "mime-version", "authentication-results", "delivered-to",
    "domainkey-signature", "x-google-original-message-id",
})  # fmt: skip
# Our own among them: the key by which a copy is found (`OUTTRAY_KEY_HEADER`).
_RESERVED_PREFIXES = ("content-", "dkim-", "resent-", "arc-", "received-", "x-outtray-")

MAX_HEADERS = 50
MAX_METADATA = 4096
MAX_TOKEN = 900
"""Longest piece of a header without a space, in bytes: longer ones could not be folded below 998 (RFC 5322 2.1.1)."""

_T = TypeVar("_T")


class Refusal(ValueError):
    """Several things wrong within one field; each problem's `field` continues the field's path: `[2]`, `[0].path`."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class FromJson:
    """An attachment as JSON wrote it, not looked at yet."""

    fields: Any
    paths: bool


def address(value: Any) -> Address | None:
    """One address or none."""
    return None if value is None else _address(value)


def addresses(value: Any) -> tuple[Address, ...]:
    """One address, several, or none."""
    if value is None:
        return ()
    if isinstance(value, (str, Address, Mapping)):
        return (_address(value),)
    return _each(value, _address)


def subject(value: Any) -> str:
    text = _line(value, 998)
    return text.strip()


def body(value: Any) -> str | None:
    """A text or html body: any characters but NUL and halves of a surrogate pair."""
    if value is None:
        return None
    text = _text(value)
    if (match := _SURROGATE.search(text)) is not None:
        raise ValueError(f"contains U+{ord(match[0]):04X}, which cannot be sent; remove it")
    return text


def attachments(value: Any) -> tuple[Attachment, ...]:
    return () if value is None else _each(value, _attachment)


def headers(value: Any) -> dict[str, str]:
    """The app's own headers, name to value."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError('must be a mapping like {"X-Campaign": "spring"}')
    if len(value) > MAX_HEADERS:
        raise ValueError(f"at most {MAX_HEADERS} headers")
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for name, text in value.items():
        try:
            _check_header_name(name, found)
            found[name] = _header_value(text)
        except ValueError as error:
            problems.append(Problem(f"[{name}]", str(error)))
    if problems:
        raise Refusal(problems)
    return found


def raw(value: Any) -> bytes | None:
    """A whole mail, as bytes."""
    if value is None:
        return None
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError('must be bytes: Path("mail.eml").read_bytes(); in JSON, base64')
    return checked_raw(bytes(value))


def from_base64(text: str) -> bytes:
    """Raises `InvalidMessage`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidMessage(Problem("raw", "must be base64 without line breaks")) from None


def invitation(value: Any) -> str | None:
    """iCalendar text with a METHOD."""
    if value is None:
        return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            value = bytes(value).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("must be UTF-8, as iCalendar is (RFC 5545 3.1.4)") from None
    return checked_invitation(_text(value))


def unsubscribe_url(value: Any) -> str | None:
    """Where one click unsubscribes (RFC 8058): https alone."""
    if value is None:
        return None
    text = _text(value)
    if not _HTTPS.fullmatch(text) or len(text) > MAX_TOKEN:
        raise ValueError(
            f"must be an https URL of at most {MAX_TOKEN} ASCII characters, as RFC 8058 asks: "
            "https://example.com/unsubscribe?token=abc; write others percent-encoded"
        )
    return text


def unsubscribe_mailto(value: Any) -> str | None:
    """Whereto an empty mail unsubscribes: an address, or a whole mailto URI. In the form of a URI."""
    if value is None:
        return None
    text = _text(value)
    address_, question, rest = text.removeprefix("mailto:").partition("?")
    checked = checked_email(unquote(address_) if text.startswith("mailto:") else address_)
    if not checked.isascii() or not _URI_REST.fullmatch(question + rest) or len(text) > MAX_TOKEN:
        raise ValueError("must be an address, or like mailto:leave@example.com?subject=abc, in ASCII")
    return f"mailto:{quote(checked, safe='@+')}{question}{rest}"


def unsubscribe_at_odds(own: Mapping[str, str], by_field: str | None) -> list[Problem]:
    """What is wrong about List-Unsubscribe: given twice, or the one click without where it goes to."""
    lower = {name.lower(): value for name, value in own.items()}
    names = [name for name in own if name.lower() in ("list-unsubscribe", "list-unsubscribe-post")]
    if by_field:
        return [Problem(f"headers[{name}]", "follows from unsubscribe_url; leave one of the two out") for name in names]
    if "list-unsubscribe-post" in lower and not re.fullmatch(
        r"[^<]*(<mailto:[^>]*>,\s*)?<https://[^>]+>(\s*,\s*<mailto:[^>]*>)?", lower.get("list-unsubscribe", "")
    ):
        return [Problem("headers[List-Unsubscribe-Post]", "needs one https URI beside it; use unsubscribe_url")]
    return []


def is_message_id(text: str) -> bool:
    """Whether a header of ours may hold it as a Message-ID: with its angle brackets, and short enough to be folded."""
    return _MESSAGE_ID.fullmatch(text) is not None


def message_id(value: Any) -> str | None:
    return None if value is None else _message_id(value)


def message_ids(value: Any) -> tuple[str, ...]:
    """Several Message-IDs; one string may hold them all, as a References header does."""
    if value is None:
        return ()
    items = value.split() if isinstance(value, str) else value
    return _each(items, _message_id)


def tags(value: Any) -> tuple[str, ...]:
    """Distinct tags in the order that they were given."""
    if value is None:
        return ()
    if isinstance(value, str):
        raise ValueError(f"must be a list like [{value!r}]")
    found = tuple(dict.fromkeys(_each(value, lambda item: _filled(item, 64))))
    if len(found) > 20:
        raise ValueError("at most 20 tags")
    return found


def metadata(value: Any) -> dict[str, Any]:
    """The app's own ids: an object of at most 4 KB of JSON. The caller's object may change afterwards; this one not."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError('must be a mapping like {"contact": 4711}')
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must be JSON: texts, finite numbers, true, false, null, lists and mappings of them") from None
    if size > MAX_METADATA:
        raise ValueError(f"has {size} bytes of JSON; at most {MAX_METADATA}")
    found: dict[str, Any] = json.loads(text)
    return found


def moment(value: Any) -> datetime | None:
    """A time with its zone, a `datetime` or ISO 8601, in UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be a time like 2027-01-31T09:00:00+01:00") from None
    if not isinstance(value, datetime):
        raise ValueError("must be a datetime with a time zone, e.g. datetime.now(UTC) + timedelta(hours=2)")
    if value.utcoffset() is None:
        raise ValueError("has no time zone; write datetime(..., tzinfo=UTC), or 2027-01-31T09:00:00+01:00")
    if not 2000 <= value.year < 2200:
        raise ValueError(f"the year {value.year} is no plausible one")
    return value.astimezone(UTC)


def patience(value: Any) -> timedelta | None:
    """A duration above zero and of 30 days at most."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (timedelta, str, int, float)):
        raise ValueError("must be a duration like 24h or timedelta(hours=24)")
    try:
        found = parse_duration(value)
    except OverflowError:
        found = timedelta.max
    if not timedelta(0) < found <= timedelta(days=30):
        raise ValueError("must be more than nothing and at most 30d")
    return found  # type: ignore[no-any-return]


def idempotency_key(value: Any) -> str | None:
    return None if value is None else _filled(value, 255)


def mailbox(value: Any) -> UUID | str | None:
    """A mailbox's id, or its address in the form that addresses are kept in."""
    if value is None or isinstance(value, UUID):
        return value
    text = _line(value, 320)
    if "@" in text:
        return checked_email(text.strip())
    try:
        return UUID(text.strip())
    except ValueError:
        raise ValueError("must be a mailbox's id or address") from None


def window(value: Any) -> Window | None:
    """The local hours at which something may leave."""
    return None if value is None else parse_window(value)


def yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def yes_no_or_neither(value: Any) -> bool | None:
    return None if value is None else yes_or_no(value)


def message_reference(value: Any) -> UUID | str | None:
    """The message that another one answers: one of ours as `UUID`, a Message-ID in its brackets, or a provider's id.

    A text is one of our ids only in the form with four hyphens, which is no provider's (docs, 2026-11: Gmail's have 16
    hexadecimal digits, those of Graph far more characters).
    """
    if value is None or isinstance(value, UUID):
        return value
    text = _filled(value, 1000).strip()
    if text.startswith("<"):
        return _message_id(text)
    if _OUR_ID.fullmatch(text):
        return UUID(text)
    if not _PROVIDER_ID.fullmatch(text):
        raise ValueError("must be a message's id here, a Message-ID like <abc@example.com>, or the provider's id of it")
    return text


def _address(value: Any) -> Address:
    if isinstance(value, Address):
        return value
    try:
        if isinstance(value, str):
            return parse_address(value)
        if isinstance(value, Mapping) and "email" in value and value.keys() <= {"email", "name"}:
            return Address(_text(value["email"]), _text(value.get("name") or ""))
    except InvalidMessage as error:
        raise ValueError(error.problems[0].reason) from None
    raise ValueError('must be an address: "ann@example.com", "Ann Lee <ann@example.com>" or Address("ann@example.com")')


def _attachment(value: Any) -> Attachment:
    if isinstance(value, Attachment):
        return value
    paths = True
    if isinstance(value, FromJson):
        value, paths = value.fields, value.paths
    if not isinstance(value, Mapping):
        raise ValueError('must be an attachment: Attachment("offer.pdf", content=...)')
    try:
        return attachment_from_json(value, paths=paths)
    except InvalidMessage as error:
        raise Refusal([Problem(f".{problem.field}", problem.reason) for problem in error.problems]) from None


def _message_id(value: Any) -> str:
    text = _text(value).strip()
    if not _MESSAGE_ID.fullmatch(text):
        raise ValueError("must be a Message-ID with its angle brackets, like <abc@example.com>")
    return text


def _check_header_name(name: Any, taken: Mapping[str, str]) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise ValueError("a header's name has 1 to 76 printable ASCII characters without space and colon")
    lower = name.lower()
    if lower in _OWN_FIELD:
        raise ValueError(f"has a field of its own; use {_OWN_FIELD[lower]}")
    if lower in _RESERVED or lower.startswith(_RESERVED_PREFIXES):
        raise ValueError("is written by Outtray or by the servers on the way; leave it out")
    if any(lower == other.lower() for other in taken):
        raise ValueError("stands twice; a header's name has no upper and lower case")


def _header_value(value: Any) -> str:
    text = _line(value, 8192).strip()
    if not text:
        raise ValueError("is empty; leave the header out")
    if any(len(token.encode()) > MAX_TOKEN for token in text.split()):
        raise ValueError(f"has more than {MAX_TOKEN} bytes without a space, which no mail can carry")
    return text


def _filled(value: Any, limit: int) -> str:
    text = _line(value, limit)
    if not text.strip():
        raise ValueError("is empty; leave it out")
    return text


def _line(value: Any, limit: int) -> str:
    """A text that stays on its line."""
    text = _text(value)
    refuse_control_characters(text)
    if len(text) > limit:
        raise ValueError(f"has {len(text)} characters; at most {limit}")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, not {type(value).__name__}")
    return value


def _each(value: Any, check: Callable[[Any], _T]) -> tuple[_T, ...]:
    """Check every item, and report every wrong one by its index."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError("must be a list")
    found: list[_T] = []
    problems: list[Problem] = []
    for index, item in enumerate(value):
        try:
            found.append(check(item))
        except Refusal as refusal:
            problems += [Problem(f"[{index}]{each.field}", each.reason) for each in refusal.problems]
        except ValueError as error:
            problems.append(Problem(f"[{index}]", str(error)))
    if problems:
        raise Refusal(problems)
    return tuple(found)
