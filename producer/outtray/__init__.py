"""Outtray: a durable outbound mail queue that sends from the user's own mailbox.

from outtray import Message, Outtray

with Outtray() as outtray:
    outtray.enqueue(Message(to="ann@example.com", subject="Hello", text="..."))
"""

from outtray.apps import App
from outtray.async_client import AsyncOuttray
from outtray.cancel import CancelCounts, CancelResult
from outtray.client import Outtray
from outtray.enqueue import Accepted
from outtray.events import Event, EventPage
from outtray.explain_reasons import Explanation
from outtray.find import JournalEntry, MessageView, Page, RecipientView
from outtray.mailboxes import Mailbox, UsageRow
from outtray.many import ManyRefused, ManyResult, Progress, Refusal
from outtray.suppression import Suppression
from outtray.switches import Switch
from outtray_schema.errors import (
    CannotOpen,
    IdempotencyConflict,
    InvalidMailbox,
    InvalidMessage,
    MailboxDisconnected,
    NotFound,
    OuttrayError,
    Problem,
    Refused,
    SettingsError,
    Unavailable,
    UnknownKey,
    WrongState,
)
from outtray_schema.message import Address, Attachment, Message, parse_message
from outtray_schema.settings import Settings, load_settings

__all__ = [
    "Accepted",
    "Address",
    "App",
    "AsyncOuttray",
    "Attachment",
    "CancelCounts",
    "CancelResult",
    "CannotOpen",
    "Event",
    "EventPage",
    "Explanation",
    "IdempotencyConflict",
    "InvalidMailbox",
    "InvalidMessage",
    "JournalEntry",
    "Mailbox",
    "MailboxDisconnected",
    "ManyRefused",
    "ManyResult",
    "Message",
    "MessageView",
    "NotFound",
    "Outtray",
    "OuttrayError",
    "Page",
    "Problem",
    "Progress",
    "RecipientView",
    "Refusal",
    "Refused",
    "Settings",
    "SettingsError",
    "Suppression",
    "Switch",
    "Unavailable",
    "UnknownKey",
    "UsageRow",
    "WrongState",
    "load_settings",
    "parse_message",
]
