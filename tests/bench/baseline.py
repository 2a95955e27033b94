"""The baseline: a Celery task per message, written as well as that shape allows.

What was chosen for it, and why (all measured beside other choices, see docs/performance.md):

- one PostgreSQL connection per process or thread, kept, autocommit, statements prepared, content in binary; the read
  and the record are one statement each, and nothing else is written (no journal, no event, no encryption, no gate);
- token bucket and daily cap in one Lua script, one round trip by EVALSHA;
- urllib3's pool, kept: `requests.Session` costs about 0.3 ms of CPU more a message;
- results, events, gossip and mingle off; acks early; prefetch as tried; JSON by the standard library as in our arm;
- over SMTP one `smtplib` session per process or thread and mailbox, kept.

A task that may not go yet asks Celery for another try, as such workers do; the benchmark's limits let everything pass.
Run as a Celery app: `celery -A tests.bench.baseline worker ...`, its settings in the environment (`BASELINE_*`).
"""

from __future__ import annotations

import base64
import json
import os
import smtplib
import threading
from pathlib import Path
from typing import Any

import psycopg
import redis
import urllib3
from celery import Celery, Task
from tests.bench.payload import CONTENT_TYPE

SCHEMA = """
DROP SCHEMA IF EXISTS baseline CASCADE;
CREATE SCHEMA baseline;
CREATE TABLE baseline.message (
    id uuid PRIMARY KEY, mailbox_id uuid NOT NULL, body bytea NOT NULL, state text NOT NULL DEFAULT 'queued',
    provider_id text, sent_at timestamptz) WITH (fillfactor = 85);
ALTER TABLE baseline.message ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX message_queued ON baseline.message (mailbox_id) WHERE state = 'queued';
"""
READ = "SELECT mailbox_id, body FROM baseline.message WHERE id = %s AND state = 'queued'"
RECORD = "UPDATE baseline.message SET state = 'sent', provider_id = %s, sent_at = clock_timestamp() WHERE id = %s"

TOKEN_MICROSECONDS = 1_000
BURST_MICROSECONDS = 60_000_000
DAILY_CAP = 1_000_000
"""Wide enough to let everything pass: what is measured is their cost, in both arms."""

QUEUE = "baseline"


def celery_app() -> Celery:
    """The app of the environment: `BASELINE_BROKER`, `BASELINE_PREFETCH`."""
    app = Celery("baseline", broker=os.environ["BASELINE_BROKER"], set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=QUEUE,
        task_acks_late=False,
        worker_prefetch_multiplier=int(os.environ.get("BASELINE_PREFETCH", "4")),
        worker_send_task_events=False,
        worker_disable_rate_limits=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
    )
    return app


class Connections(threading.local):
    """What one process, or one of its threads, keeps open."""

    def __init__(self) -> None:
        self.database = psycopg.connect(os.environ["BASELINE_DATABASE"], autocommit=True, prepare_threshold=0)
        self.redis = redis.Redis.from_url(os.environ["BASELINE_REDIS"])
        self.pace = self.redis.script_load(Path(__file__).with_name("pace.lua").read_text())
        self.http = urllib3.PoolManager(maxsize=1, retries=False)
        self.smtp: dict[str, smtplib.SMTP] = {}


_kept: list[Connections] = []
_making = threading.Lock()


def connections() -> Connections:
    """Made at the first task, hence after the fork; each thread fills its own."""
    with _making:
        if not _kept:
            _kept.append(Connections())
    return _kept[0]


def _may_go(kept: Connections, mailbox_id: Any) -> int:
    keys = (f"pace:{mailbox_id}", f"day:{mailbox_id}")
    answer: Any = kept.redis.evalsha(kept.pace, 2, *keys, TOKEN_MICROSECONDS, BURST_MICROSECONDS, DAILY_CAP)
    return int(answer)


def post(kept: Connections, message_id: str, body: bytes) -> str:
    """The call that a Gmail client makes: the MIME itself, as a media upload. Returns the id that came back.

    With `BASELINE_RAW` it is the `messages.send` that everybody writes: the MIME as base64 in JSON.
    """
    content_type = CONTENT_TYPE
    if "BASELINE_RAW" in os.environ:
        body, content_type = b'{"raw": "%b"}' % base64.urlsafe_b64encode(body), "application/json"
    answer = kept.http.request(
        "POST",
        os.environ["BASELINE_SINK"],
        body=body,
        headers={"Content-Type": content_type, "Authorization": "Bearer bench", "X-Message": message_id},
    )
    if answer.status != 200:
        raise RuntimeError(f"the sink answered {answer.status}")
    return str(json.loads(answer.data)["id"])


def mail(kept: Connections, mailbox_id: str, body: bytes) -> str:
    """The same over SMTP, on the mailbox's kept session."""
    session = kept.smtp.get(mailbox_id)
    if session is None:
        session = smtplib.SMTP(os.environ["BASELINE_SMTP_HOST"], int(os.environ["BASELINE_SMTP_PORT"]))
        session.login(f"{mailbox_id}@bench.test", os.environ["BASELINE_SMTP_PASSWORD"])
        kept.smtp[mailbox_id] = session
    session.sendmail(f"{mailbox_id}@bench.test", ["reader@example.net"], body)
    return "accepted"


app = celery_app() if "BASELINE_BROKER" in os.environ else Celery("baseline", set_as_current=False)


@app.task(bind=True, name="baseline.send", max_retries=None)  # type: ignore[untyped-decorator]
def send(task: Task, message_id: str) -> None:
    """Send one message and record its id."""
    kept = connections()
    row = kept.database.execute(READ, [message_id], binary=True).fetchone()
    if row is None:
        return
    wait = _may_go(kept, row[0])
    if wait:
        raise task.retry(countdown=3600 if wait < 0 else wait / 1000)
    by_smtp = "BASELINE_SMTP_HOST" in os.environ
    provider_id = mail(kept, str(row[0]), row[1]) if by_smtp else post(kept, message_id, row[1])
    kept.database.execute(RECORD, [provider_id, message_id])
