"""Running the show: time passes only here, and each look serves the view, the news and the deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from uuid import UUID

from outtray.events import MOST, Event
from outtray_sandbox.demo.cast import Player
from outtray_sandbox.demo.live import View
from outtray_sandbox.demo.stage import Stage
from outtray_sandbox.demo.watch import Now, look

HARD_STOP = 150.0
"""Seconds after which the demo gives up and says what it was waiting for."""
LOOK_EVERY = 0.2


class TooSlow(Exception):
    """The demo took longer than its hard stop; the text says what it was waiting for."""


class Show:
    """Stage and view together. `until` lets time pass; `say` tells."""

    def __init__(self, stage: Stage, view: View, seed: int) -> None:
        self.stage = stage
        self.view = view
        self.chance = random.Random(seed)  # noqa: S311 - a repeatable choice, no secret
        self.say = view.say
        self._cursor: str | None = None
        self._parked: dict[UUID, str] = {}
        self._recovered: set[UUID] = set()
        self._looked_for: set[UUID] = set()
        self.found: list[UUID] = []
        """Messages that were unknown until a look found them."""

    def until(self, condition: Callable[[Now], bool], what: str) -> Now:
        """Let time pass until the condition holds. Raises `TooSlow`, `EndedByItself`."""
        while not condition(now := self.look()):
            if self.view.elapsed > HARD_STOP:
                raise TooSlow(f"after {HARD_STOP:.0f} s the demo was still waiting until {what}")
            time.sleep(LOOK_EVERY)
        return now

    def pause(self, seconds: float) -> None:
        """Let time pass so that a person can follow."""
        end = self.view.elapsed + seconds
        self.until(lambda _: self.view.elapsed >= end, "a pause was over")

    def look(self) -> Now:
        """Look once: tell the news, show the picture."""
        self.stage.crew.check()
        self._tell_news()
        now = look(self.stage)
        self.view.show(now)
        return now

    def has_recovered(self, player: Player) -> bool:
        """Whether the mailbox was parked, and has sent since."""
        return self.stage.boxes[player.address].id in self._recovered

    # ── news ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell_news(self) -> None:
        """What the system says of itself: the outbox that webhooks and apps read too."""
        page = self.stage.client.events(after=self._cursor, limit=MOST)
        self._cursor = page.cursor
        for event in page.events:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        player = self.stage.player_of(event.mailbox_id)
        if player is None or event.mailbox_id is None:
            return
        reason = _in_words(str(event.data.get("reason", "")))
        if event.message_id in self._looked_for:
            self._tell_finding(event, player)
        if event.kind == "mailbox.parked" and self._parked.get(event.mailbox_id) != reason:
            self._parked[event.mailbox_id] = reason
            self.say(f"{player.address} parks itself: {reason}", "system")
        elif event.kind == "mailbox.reconnect":
            self.say(f"{player.address} waits for its owner: {reason}", "system")
        elif event.kind == "sent" and self._parked.pop(event.mailbox_id, None) is not None:
            self._recovered.add(event.mailbox_id)
            self.say(f"{player.address} sends again, by itself", "good")
        elif event.kind == "unknown":
            self.say(f"a message of {player.address} is unknown: {reason}", "system")
            if player.can_be_looked_into and event.message_id is not None:
                self._looked_for.add(event.message_id)

    def _tell_finding(self, event: Event, player: Player) -> None:
        """What Outtray's own looks showed about a message that was unknown."""
        if event.message_id is None or event.kind not in ("sent", "queued"):
            return
        self._looked_for.discard(event.message_id)
        if event.kind == "sent":
            self.found.append(event.message_id)
            self.say(
                f"Outtray looked into the mailbox of {player.address}: found the copy of it, so it was sent", "good"
            )
        else:
            self.say(
                f"Outtray looked into the mailbox of {player.address}: found it still a draft, and sends that one",
                "good",
            )


def _in_words(reason: str) -> str:
    _, is_quota, limit = reason.partition("quota: ")
    return f"its daily limit of {limit} is reached" if is_quota else reason
