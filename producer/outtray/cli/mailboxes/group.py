"""The command groups that hold the commands about mailboxes."""

from __future__ import annotations

from outtray.cli import options

group = options.group("Mailboxes: the accounts that mail leaves from.")
adding = options.group("Connect a mailbox.")
group.add_typer(adding, name="add")
