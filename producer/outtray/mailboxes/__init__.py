"""Mailboxes: connect one, set what it may send, pause and resume it, give it new credentials, remove it.

Whatever lets a mailbox send again computes `parked_until` and `next_at` anew in the same transaction (rule 13).
"""

from outtray.mailboxes.changing import change
from outtray.mailboxes.smtp import add_smtp, reconnect, set_imap, set_password, set_trust
from outtray.mailboxes.status import pause, remove, resume, set_default
from outtray.mailboxes.storing import ARM, add_row, place, sealed, sealed_address, sender_of, stored
from outtray.mailboxes.usage import UsageRow, import_usage
from outtray.mailboxes.view import REMOVED, Mailbox, get, list_all

__all__ = [
    "ARM",
    "REMOVED",
    "Mailbox",
    "UsageRow",
    "add_row",
    "add_smtp",
    "change",
    "get",
    "import_usage",
    "list_all",
    "pause",
    "place",
    "reconnect",
    "remove",
    "resume",
    "sealed",
    "sealed_address",
    "sender_of",
    "set_default",
    "set_imap",
    "set_password",
    "set_trust",
    "stored",
]
