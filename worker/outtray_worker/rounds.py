"""Rounds: Celery tasks that each carry up to 64 mailbox ids and nothing else. Looks: the same with message ids.

The queue is bounded, so the backlog and any outage of the workers stay in PostgreSQL. It has two priorities: a round of
small apps overtakes all that wait, in the broker and in the worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from celery import Celery

from outtray_worker.queues import TASK as QUEUES_TASK

QUEUE = "rounds"
TASK = "outtray.round"
LOOK_TASK = "outtray.look"
"""A worker of the release before does not know it, and throws it away: those looks are picked again in a while."""

EXPRESS, ORDINARY = 0, 1
"""Priorities of Celery's Redis transport: the lowest number is taken first."""


class Rounds:
    """Publishes rounds. Its methods block for at most the broker's socket timeouts: call them from a thread."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None

    def publish(self, mailbox_ids: Sequence[UUID], priority: int = ORDINARY) -> None:
        """Put one round into the queue. Raises what the broker raises; the caller takes the pick back."""
        self._send(TASK, mailbox_ids, priority, {"express": True} if priority == EXPRESS else {})

    def publish_looks(self, message_ids: Sequence[UUID]) -> None:
        """Put looks for these messages into the queue. Raises what the broker raises; they are picked again anyway."""
        self._send(LOOK_TASK, message_ids, ORDINARY, {})

    def publish_queues(self, counts: Mapping[str, int]) -> None:
        """Show these counts in Flower: the task does nothing but be seen. Raises what the broker raises."""
        self._publish(QUEUES_TASK, (), ORDINARY, counts)

    def _send(self, task: str, ids: Sequence[UUID], priority: int, arguments: Mapping[str, bool]) -> None:
        self._publish(task, [[str(each) for each in ids]], priority, arguments)

    def _publish(self, task: str, args: Sequence[Any], priority: int, kwargs: Mapping[str, Any]) -> None:
        self._open()
        try:
            self._app.send_task(
                task, args=args, kwargs=dict(kwargs), queue=QUEUE, producer=self._producer, retry=False,
                priority=priority,
            )  # fmt: skip
        except Exception:
            self.close()
            raise

    def waiting(self) -> int:
        """Rounds of both kinds that no worker has taken yet. Declares the queue, should the broker not know it."""
        self._open()
        try:
            # Not passive: kombu 5.7 asks EXISTS without the key prefix, and so finds no queue, however long it is.
            declared = self._connection.default_channel.queue_declare(queue=QUEUE, durable=True, auto_delete=False)
        except Exception:
            self.close()
            raise
        return int(declared.message_count)

    def close(self) -> None:
        """Forget the connection; the next call makes a new one."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.release()

    def _open(self) -> None:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._producer = self._app.amqp.Producer(self._connection)
