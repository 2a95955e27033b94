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

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, ValidationError

from outtray_schema import door, raw, sequence
from outtray_schema.address import Address, normalise_address
from outtray_schema.attachment import Attachment
from outtray_schema.errors import InvalidMessage, Problem
from outtray_schema.windows import Window

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
    window: Window | str | Mapping[str, Any] | None
    recipients: Literal["all", "accepted"]
    follows: UUID | str | None
    after: timedelta | str
    on_predecessor: Mapping[str, str] | str
    thread: bool | None
    raw: bytes | None
    invitation: str | bytes | None
    unsubscribe_url: str | None
    unsubscribe_mailto: str | None


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
    - `window`: the local hours at which it may leave, inside its mailbox's own: `"mon-fri 09:00-17:30 Europe/Berlin"`.
    - `recipients`: by SMTP a server may refuse single recipients. `all`: then nobody receives it. `accepted`: the
      others do, and for those refused for now another message goes on. Once it is a message, `recipients` is who
      receives it.
    - `follows`: the message before it in a sequence, by id or idempotency key. It is due `after` that one's end, not
      before `send_at`; who receives it follows from that one if `to` is left out.
    - `on_predecessor`: `{"failed": "go_on"}`: what to do after each of that one's ends, `cancel` or `go_on`. Default:
      cancel with it; go on after *sent*, and *drafted*.
    - `thread`: whether it answers the message before it, as a reply in its thread does. Default: where it can.
    - `unsubscribe_url` (https), `unsubscribe_mailto`: for List-Unsubscribe, with one click (RFC 8058).
    - `invitation`: iCalendar text with a METHOD, shown as an invitation, with the answers that it asks for.
    - `raw`: a whole mail as bytes, sent as they are; sender, `to`, `cc` and subject follow from it. Who it goes to may
      be given instead, and `bcc` beside it. docs/mime.md says what each provider does to it.
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
    window: Annotated[Window | None, PlainValidator(door.window)] = None
    recipient_policy: Literal["all", "accepted"] = Field("all", alias="recipients")
    follows: Annotated[UUID | str | None, PlainValidator(sequence.predecessor)] = None
    after: Annotated[timedelta, PlainValidator(sequence.delay)] = timedelta(0)
    on_predecessor: Annotated[dict[str, sequence.Choice], PlainValidator(sequence.on_predecessor)] = Field(
        default_factory=dict
    )
    thread: Annotated[bool | None, PlainValidator(door.yes_no_or_neither)] = None
    raw: Annotated[bytes | None, PlainValidator(door.raw)] = None
    invitation: Annotated[str | None, PlainValidator(door.invitation)] = None
    unsubscribe_url: Annotated[str | None, PlainValidator(door.unsubscribe_url)] = None
    unsubscribe_mailto: Annotated[str | None, PlainValidator(door.unsubscribe_mailto)] = None

    _rendered_from: str | None = PrivateAttr(None)

    def __init__(self, **fields: Unpack[MessageFields]) -> None:
        problems: list[Problem] = []
        try:
            super().__init__(**raw.completed(fields))
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

    @property
    def rendered_from(self) -> str | None:
        """The template that it was made from, as name@version."""
        return self._rendered_from

    def made_from(self, template: str) -> Message:
        """The same message, which remembers its template."""
        self._rendered_from = template
        return self

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
        problems += self._answer_at_odds() + sequence.problems_of_sequence(self) + self._form_at_odds()
        if self.raw is not None and self.recipient_policy == "accepted":
            problems.append(
                Problem("recipients", "of a raw mail are all or none: accepted needs a header of ours in it")
            )
        if self.send_at and self.expires_at and self.expires_at <= self.send_at:
            problems.append(Problem("expires_at", "must be later than send_at"))
        inline = [each.inline_id for each in self.attachments if each.inline_id is not None]
        if inline and self.html is None:
            problems.append(Problem("attachments", f"inline_id needs html that shows it by cid:{inline[0]}"))
        if len(set(inline)) < len(inline):
            problems.append(Problem("attachments", "each inline_id may stand once"))
        return problems

    def _form_at_odds(self) -> list[Problem]:
        """What a raw mail, an invitation and the headers of a list do not go together with."""
        if self.raw is not None:
            return raw.problems_of_raw(self)
        problems = door.unsubscribe_at_odds(self.headers, self.unsubscribe_url or self.unsubscribe_mailto)
        if self.invitation is not None and self.answering == "forward":
            problems.append(Problem("invitation", "cannot be added to a forward; send it as a message of its own"))
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
        taken["attachments"] = [
            each if isinstance(each, Attachment) else door.FromJson(each, paths) for each in attachments
        ]
    if isinstance(taken.get("raw"), str):
        taken["raw"] = door.from_base64(taken["raw"])
    return Message(**taken)


def _missing(fields: Mapping[str, Any]) -> list[Problem]:
    problems = []
    answers = fields.get("reply_to_message") is not None
    follows = answers or fields.get("follows") is not None
    forwards = answers and fields.get("answering") == "forward"
    if not any(fields.get(role) for role in ("to", "cc", "bcc")) and (forwards or not follows):
        problems.append(Problem("to", "a message needs at least one recipient in to, cc or bcc"))
    if forwards:
        return problems
    if not any(fields.get(name) is not None for name in ("text", "html", "raw", "invitation")) and not fields.get(
        "attachments"
    ):
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
    known = [field.alias or name for name, field in Message.model_fields.items()]
    close = difflib.get_close_matches(name, known, n=1)
    return "is no field of a message" + (f"; did you mean {close[0]}?" if close else "")
