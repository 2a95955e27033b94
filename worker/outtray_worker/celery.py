"""Celery: transport and supervisor, nothing more. A task brings mailbox ids; the record is in PostgreSQL.

Early ack and no prefetch: what a dying worker held comes back through leases in seconds, not through Celery's
redelivery, which takes minutes, is not fenced, and in 5.7 ends a worker whose broker goes away (measured on 5.7.0,
2026-11). Delays, retries and rates live in PostgreSQL; a test refuses Celery's own.
"""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue

from outtray_schema.settings import Settings
from outtray_worker.rounds import EXPRESS, ORDINARY, QUEUE


def celery_app(settings: Settings, role: str) -> Celery:
    """The Celery app of one process. `role` names its connections in `CLIENT LIST`."""
    app = Celery("outtray", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,
        task_queues=[Queue(QUEUE, routing_key=QUEUE)],  # type: ignore[no-untyped-call]
        task_default_queue=QUEUE,
        worker_disable_rate_limits=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis that fails over, is read-only or full answers with an error and keeps the connection: without this the
        # worker ends of it, with status 1 (celery/worker/consumer/consumer.py, 5.7.0; tried 2026-11).
        broker_channel_error_retry=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_publish_retry_policy={"max_retries": 1},
        # Flower asks from up to 32 threads at once, and each question takes two connections while it waits for the
        # second: with 4 they waited for each other for ever, and for SIGTERM too (Flower 2.2, tried 2026-11).
        broker_pool_limit=100 if role == "flower" else 4,
        worker_send_task_events=True,
        task_send_sent_event=False,
        worker_enable_remote_control=True,  # Flower asks workers for their state
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        enable_utc=True,
        timezone="UTC",
        broker_transport_options={
            # A task costs one command instead of nine. What is lost with its worker comes back through `round_at` in
            # half a minute, sooner and fenced, where kombu's own redelivery would take two.
            "ack_emulation": False,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "priority_steps": [EXPRESS, ORDINARY],
            "global_keyprefix": "outtray:q:",
            "client_name": f"outtray-{role}",
        },
    )
    return app
