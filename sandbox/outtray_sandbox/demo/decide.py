"""Deciding about an unknown message truthfully: the server's own ledger says whether it took it."""

from __future__ import annotations

from datetime import UTC, datetime

from outtray.find import MessageView
from outtray_sandbox.demo.show import Show


class DecisionFailed(Exception):
    """`outtray resolve` did not do what it was asked for; the text is its own."""


def settle_unknown(show: Show, message: MessageView) -> None:
    """Look into the server's ledger, then run `outtray resolve` as a person would. Raises `DecisionFailed`."""
    player = show.stage.player_of(message.mailbox_id)
    found = [taken for taken in show.stage.taken() if taken.rfc_message_id == message.rfc_message_id]
    owner = player.address if player else "the mailbox"
    if found:
        at = datetime.fromtimestamp(found[0].accepted_at, UTC).astimezone()
        decision, note = "sent", f"the server's ledger has it, taken at {at:%H:%M:%S}"
    else:
        decision, note = "resend", "the server's ledger does not have it"
    show.say(f"“{message.subject}” of {owner}: {note}")
    show.say(f"outtray resolve {message.id} --{decision}", "command")
    command = show.stage.crew.begin("resolve", str(message.id), f"--{decision}", "--note", note)
    show.until(lambda _: command.is_over, "the decision was recorded")
    status, said = command.result()
    if status != 0:
        raise DecisionFailed(f"outtray resolve ended with {status}: {said}")
    for line in said.splitlines():
        show.say(line.removeprefix("✓ ").strip(), "good" if line.startswith("✓") else "step")
