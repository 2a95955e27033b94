"""An app that enqueues, as a process of its own that can die in the midst of it: `run_crm(settings, MAILBOX, TO, KEY)`.

It gives each message an idempotency key, and asks again until it has an answer, as an app should.
"""

from __future__ import annotations

import time
from uuid import UUID

from outtray import Message, Outtray
from outtray_schema.errors import OuttrayError
from outtray_schema.settings import Settings
from outtray_worker.crash import crash_points

TRIES = 60


def run_crm(settings: Settings, mailbox: str, to: str, key: str) -> None:
    """Enqueue one message; the steps `enqueuing` and `enqueued` are about its mailbox."""
    reach, box = crash_points(settings.crash_at), UUID(mailbox)
    with Outtray(settings, actor="crm") as client:
        publish = client._runner.publisher.publish

        def reached_and_published(wakes):
            reach("enqueued", box)
            publish(wakes)

        client._runner.publisher.publish = reached_and_published
        for _ in range(TRIES):
            try:
                reach("enqueuing", box)
                client.enqueue(Message(mailbox=box, to=to, subject="s", text="t", idempotency_key=key))
                return
            except OuttrayError:
                time.sleep(0.2)
    raise SystemExit(1)
