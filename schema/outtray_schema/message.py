"""The message: one email as an app asks for it, validated whole at the door.

`Message(...)` and `parse_message({...})` raise `InvalidMessage` with every field that is wrong at once, by the path
that the caller wrote (`to[2]`, `attachments[0].filename`, `headers[X-Campaign]`), and the cure. The text may quote the
caller's own value, so it is for the caller and never for a log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, TypedDict, Unpack
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from outtray_schema import door
from outtray_schema.address import Address, normalise_address
from outtray_schema.attachment import Attachment
from outtray_schema.errors import InvalidMessage, Problem

__all__ = [
    "PRIORITIES",
    "Address",
    "Answering",
    "Attachment",
    "Message",
    "MessageFields",
    "Recipient",
    "Role",
    "parse_message",
]

Role = Literal["to", "cc", "bcc"]
Answering = Literal["reply", "reply_all", "forward"]
"""What a message does with the one that it answers: `docs/answering.md`."""
AddressInput = str | Address | Mapping[str, str]

PRIORITIES = {"high": 0, "normal": 1, "low": 2}
"""How `outtray.message.priority` is stored."""

MAX_RECIPIENTS = 2000
"""More than any provider takes in one message; what a mailbox's own provider takes is a limit of its plan."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One address of a message and the role in which it receives it."""

    role: Role
    address: Address


class MessageFields(TypedDict, total=False):
    """What `Message(...)` takes. `from_` may also be written `from` in a mapping."""

    to: AddressInput | Iterable[AddressInput]
    cc: AddressInput | Iterable[AddressInput]
    bcc: AddressInput | Iterable[AddressInput]
    reply_to: AddressInput | Iterable[AddressInput]
    from_: AddressInput | None
    subject: str
    text: str | None
    html: str | None
    attachments: Iterable[Attachment | Mapping[str, Any]]
    headers: Mapping[str, str]
    in_reply_to: str | None
    references: Iterable[str]
    tags: Iterable[str]
    metadata: Mapping[str, Any]
    priority: Literal["high", "normal", "low"]
    send_at: datetime | str | None
    expires_at: datetime | str | None
    give_up_after: timedelta | str | None
    on_unknown: Literal["hold", "resend"] | None
    idempotency_key: str | None
    mailbox: UUID | str | None
    importance: Literal["high", "normal", "low"]
    request_read_receipt: bool
    mode: Literal["send", "draft"]
    reply_to_message: UUID | str | None
    answering: Answering


_Addresses = Annotated[tuple[Address, ...], PlainValidator(door.addresses)]
_Time = Annotated[datetime | None, PlainValidator(door.moment)]
_Body = Annotated[str | None, PlainValidator(door.body)]


class Message(BaseModel):
    """One email, to be sent once from one mailbox. Frozen; raises `InvalidMessage` with every wrong field at once.

    - `to`, `cc`, `bcc`, `reply_to`: an address or several: `"ann@example.com"`, `"Ann Lee <ann@example.com>"`,
      `Address("ann@example.com", "Ann Lee")`. An address that stands more than once receives one mail, in the role of
      its first mention in the order to, cc, bcc (`recipients`).
    - `from_`: default the mailbox's own address and name; another one must be an alias of the mailbox.
    - `subject`, `text`, `html`, `attachments` (`Attachment`), `headers`: own ones only, what has a field is refused.
    - `in_reply_to`, `references`: Message-IDs with their angle brackets, for threading.
    - `tags`: at most 20 of 64 characters. `metadata`: at most 4 KB of JSON, the app's own ids, stored encrypted.
    - `priority`: high, normal or low, among the messages of one mailbox.
    - `send_at`, `expires_at`: with a time zone. `give_up_after`: how long its own failures are tried again.
    - `on_unknown`: `hold` it for a decision, or `resend` it, if nobody can tell whether it left. Default: the
      mailbox's, else the app's.
    - `idempotency_key`: the same key again answers with the first message. At most 255 characters.
    - `mailbox`: id or address of the mailbox that sends it. Default: the app's.
    - `importance`: high, normal or low, as the recipient's mail program shows it; `priority` is another thing.
    - `request_read_receipt`: ask the recipients' mail programs to tell the sender once it was read.
    - `mode`: `draft` leaves it as a draft in the mailbox, for its person to send.
    - `reply_to_message`: the message that this one answers: its id here (`UUID`), or of any message of the mailbox the
      provider's id or the Message-ID with its angle brackets. What is left out then follows from that message: `to` of
      an answer, and `subject`.
    - `answering`: `reply`, `reply_all`, or `forward`, which quotes it and carries its attachments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    to: _Addresses = ()
    cc: _Addresses = ()
    bcc: _Addresses = ()
    reply_to: _Addresses = ()
    from_: Annotated[Address | None, PlainValidator(door.address)] = Field(None, alias="from")
    subject: Annotated[str, PlainValidator(door.subject)] = ""
    text: _Body = None
    html: _Body = None
    attachments: Annotated[tuple[Attachment, ...], PlainValidator(door.attachments)] = ()
    headers: Annotated[dict[str, str], PlainValidator(door.headers)] = Field(default_factory=dict)
    in_reply_to: Annotated[str | None, PlainValidator(door.message_id)] = None
    references: Annotated[tuple[str, ...], PlainValidator(door.message_ids)] = ()
    tags: Annotated[tuple[str, ...], PlainValidator(door.tags)] = ()
    metadata: Annotated[dict[str, Any], PlainValidator(door.metadata)] = Field(default_factory=dict)
    priority: Literal["high", "normal", "low"] = "normal"
    send_at: _Time = None
    expires_at: _Time = None
    give_up_after: Annotated[timedelta | None, PlainValidator(door.patience)] = None
    on_unknown: Literal["hold", "resend"] | None = None
    idempotency_key: Annotated[str | None, PlainValidator(door.idempotency_key)] = None
    mailbox: Annotated[UUID | str | None, PlainValidator(door.mailbox)] = None
    importance: Literal["high", "normal", "low"] = "normal"
    request_read_receipt: Annotated[bool, PlainValidator(door.yes_or_no)] = False
    mode: Literal["send", "draft"] = "send"
    reply_to_message: Annotated[UUID | str | None, PlainValidator(door.message_reference)] = None
    answering: Answering = "reply"

    def __init__(self, **fields: Unpack[MessageFields]) -> None:
        problems: list[Problem] = []
        try:
            super().__init__(**fields)
        except ValidationError as error:
            problems = [problem for item in error.errors(include_url=False) for problem in _problems(item)]
        problems += _missing(fields if problems else self.__dict__)
        if not problems:
            problems = self._at_odds()
        if problems:
            raise InvalidMessage(problems)

    def __repr__(self) -> str:
        """Counts only: a message that lands in a log or a traceback shows nobody's address and no content."""
        return f"Message({len(self.recipients)} recipients, {len(self.attachments)} attachments)"

    __str__ = __repr__

    @cached_property
    def recipients(self) -> tuple[Recipient, ...]:
        """Every address once, in the role of its first mention in the order to, cc, bcc."""
        found: dict[str, Recipient] = {}
        roles: tuple[tuple[Role, tuple[Address, ...]], ...] = (("to", self.to), ("cc", self.cc), ("bcc", self.bcc))
        for role, addresses in roles:
            for address in addresses:
                found.setdefault(normalise_address(address.email), Recipient(role, address))
        return tuple(found.values())

    @property
    def needs_smtputf8(self) -> bool:
        """Whether an address of it has a local part outside ASCII: only servers with SMTPUTF8 take it (RFC 6531)."""
        own = (*self.reply_to, *((self.from_,) if self.from_ else ()))
        return any(address.needs_smtputf8 for address in (*own, *(each.address for each in self.recipients)))

    def _at_odds(self) -> list[Problem]:
        """What is wrong between fields that are each right."""
        problems = []
        if len(self.recipients) > MAX_RECIPIENTS:
            problems.append(Problem("to", f"a message has at most {MAX_RECIPIENTS} recipients; send several"))
        problems += self._answer_at_odds()
        if self.send_at and self.expires_at and self.expires_at <= self.send_at:
            problems.append(Problem("expires_at", "must be later than send_at"))
        inline = [each.inline_id for each in self.attachments if each.inline_id is not None]
        if inline and self.html is None:
            problems.append(Problem("attachments", f"inline_id needs html that shows it by cid:{inline[0]}"))
        if len(set(inline)) < len(inline):
            problems.append(Problem("attachments", "each inline_id may stand once"))
        return problems

    def _answer_at_odds(self) -> list[Problem]:
        if self.reply_to_message is None:
            lonely = self.answering != "reply"
            return [Problem("answering", "needs reply_to_message: the message that it answers")] if lonely else []
        by_hand = [name for name in ("in_reply_to", "references") if getattr(self, name)]
        return [Problem(name, "follows from reply_to_message; leave one of the two out") for name in by_hand]


def parse_message(fields: object, *, paths: bool = False) -> Message:
    """A message from JSON, as in a line of NDJSON. Raises `InvalidMessage`.

    The names are `Message`'s, with `from` for the sender; times are ISO 8601 with an offset; an attachment is
    `{"filename", "content": base64, "content_type", "inline_id"}`, or has a `path` if `paths` allows reading this
    machine's files: for the command line, never for what came over a network.
    """
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise InvalidMessage(Problem("message", 'must be an object like {"to": "ann@example.com", "subject": "Hello"}'))
    taken: dict[str, Any] = dict(fields)
    if isinstance(attachments := taken.get("attachments"), (list, tuple)):
        taken["attachments"] = [door.FromJson(each, paths) for each in attachments]
    return Message(**taken)


def _missing(fields: Mapping[str, Any]) -> list[Problem]:
    problems = []
    answers = fields.get("reply_to_message") is not None
    forwards = answers and fields.get("answering") == "forward"
    if not any(fields.get(role) for role in ("to", "cc", "bcc")) and (forwards or not answers):
        problems.append(Problem("to", "a message needs at least one recipient in to, cc or bcc"))
    if forwards:
        return problems
    if fields.get("text") is None and fields.get("html") is None and not fields.get("attachments"):
        problems.append(Problem("text", 'a message needs text, html or attachments; text="" makes an empty one'))
    return problems


def _problems(item: Any) -> list[Problem]:
    """Pydantic's finding about one field, in the caller's words."""
    name = str(item["loc"][0]).removesuffix("_")
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, door.Refusal):
        return [Problem(name + problem.field, problem.reason) for problem in cause.problems]
    if item["type"] == "extra_forbidden":
        return [Problem(name, _unknown_field(name))]
    return [Problem(name, item["msg"].removeprefix("Value error, "))]


def _unknown_field(name: str) -> str:
    known = [field.removesuffix("_") for field in Message.model_fields]
    close = difflib.get_close_matches(name, known, n=1)
    return "is no field of a message" + (f"; did you mean {close[0]}?" if close else "")
