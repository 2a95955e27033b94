"""`outtray resolve`: a person's decision about a message of which nobody can tell whether it left."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.markup import escape

from outtray.cli.exits import UsageError
from outtray.cli.message import MessageId, message_id
from outtray.cli.options import AppName, Json, examples, flag
from outtray.cli.screen import STATES, colored, done, print_json
from outtray.cli.session import client

EXAMPLES = examples(
    'outtray resolve 0199b0c2-… --sent --note "found in the Sent folder"',
    'outtray resolve 0199b0c2-… --resend --note "recipient says it never came"',
)

Sent = Annotated[bool, flag("--sent", text="It left: found in the Sent folder, or the recipient has it.")]
Resend = Annotated[bool, flag("--resend", text="Send it again, at the risk that it arrives twice.")]
Fail = Annotated[bool, flag("--fail", text="Give it up, whether it left or not.")]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why, for the journal.")]


def resolve(
    name: MessageId,
    sent: Sent = False,
    resend: Resend = False,
    fail: Fail = False,
    note: Note = "",
    app: AppName = None,
    as_json: Json = False,
) -> None:
    """Decide about an unknown message.

    The decision, who took it, when and why are kept in its journal.
    """
    decision = _decision(sent, resend, fail)
    with client(app) as outtray:
        message = outtray.resolve(message_id(name), decision, note)
    if as_json:
        print_json(message)
        return
    done(f"Message {escape(name)} is {colored(message.state, STATES)} by your decision.")


def _decision(sent: bool, resend: bool, fail: bool) -> Literal["sent", "resend", "fail"]:
    chosen: list[Literal["sent", "resend", "fail"]] = []
    chosen += ["sent"] if sent else []
    chosen += ["resend"] if resend else []
    chosen += ["fail"] if fail else []
    if len(chosen) != 1:
        raise UsageError("give exactly one of --sent, --resend and --fail")
    return chosen[0]
