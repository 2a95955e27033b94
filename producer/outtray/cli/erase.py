"""`outtray erase`: forget a person."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from outtray.cli.exits import Exit
from outtray.cli.options import AppName, Json, Yes, examples
from outtray.cli.screen import count, done, hint, out, print_json
from outtray.cli.session import client

EXAMPLES = examples(
    "outtray erase --recipient bob@example.org", "outtray erase --recipient bob@example.org --yes --json"
)


def erase(
    recipient: Annotated[
        str, typer.Option("--recipient", metavar="ADDRESS", help="Whom to forget.", show_default=False)
    ],
    yes: Yes = False,
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Forget a person: erase all that was ever to go to an address.

    Content, subject, metadata, the address itself. What waits for it is cancelled first. States, ids and history stay,
    without the person; so does the suppression list. What is with the provider just now is erased once it has ended.
    """
    if not yes and not as_json and not typer.confirm(f"Erase all that concerns {recipient}? It cannot be undone."):
        raise typer.Exit(Exit.REFUSED)
    with client(app) as outtray:
        erased = outtray.erase_recipient(recipient)
    if as_json:
        print_json(erased)
        return
    done(f"{count(erased.messages, 'message')} erased, {count(erased.cancelled, 'message')} of them cancelled first.")
    if erased.refusals:
        out.print(f"  {count(erased.refusals, 'refusal')} at the door forgotten", soft_wrap=True)
    if erased.later:
        out.print(f"  {erased.later:,} with the provider or unknown: erased once they have ended", soft_wrap=True)
    hint(
        f"a mail that left is in its mailbox's Sent folder; to write no more: outtray suppress add {escape(recipient)}"
    )
