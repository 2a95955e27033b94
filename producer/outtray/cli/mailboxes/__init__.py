"""`outtray mailbox`: connect a mailbox, see what it may send, change that, and take it away."""

from outtray.cli.mailboxes.add import add_smtp
from outtray.cli.mailboxes.change import change, reconnect, remove
from outtray.cli.mailboxes.flags import Mailbox, MailboxOption, mailbox_name
from outtray.cli.mailboxes.group import adding, group
from outtray.cli.mailboxes.show import limits_line, plans, show, show_all, show_hosts

__all__ = [
    "Mailbox",
    "MailboxOption",
    "add_smtp",
    "adding",
    "change",
    "group",
    "limits_line",
    "mailbox_name",
    "plans",
    "reconnect",
    "remove",
    "show",
    "show_all",
    "show_hosts",
]
