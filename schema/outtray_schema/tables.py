"""The tables as SQLAlchemy knows them: for Alembic's comparison, and for apps that join their own tables with ours.

The migrations make them and are the record; `tests/integration/test_migrations.py` holds this page to them, constraint
by constraint. Why a column is there stands beside it in `migrations/versions/*.sql`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    TextClause,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.types import UserDefinedType

metadata = MetaData(schema="outtray")


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction number, which never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


def _key(name: str, kind: Any = Uuid, **options: Any) -> Column[Any]:
    return Column(name, kind, primary_key=True, **options)


def _must(name: str, kind: Any, default: str | TextClause | None = None) -> Column[Any]:
    """A column that is never NULL; `default` is SQL."""
    return Column(name, kind, nullable=False, server_default=text(default) if isinstance(default, str) else default)


def _may(name: str, kind: Any, *constraints: Any) -> Column[Any]:
    return Column(name, kind, *constraints, nullable=True)


def _moment(name: str) -> Column[Any]:
    return _may(name, TIMESTAMP(timezone=True))


def _now(name: str) -> Column[Any]:
    return _must(name, TIMESTAMP(timezone=True), "outtray.outtray_now()")


def _of_message(**options: Any) -> Column[Any]:
    return Column("message_id", Uuid, ForeignKey("outtray.message.id", ondelete="CASCADE"), nullable=False, **options)


def _of_number(table: str) -> Column[Any]:
    """An id from a sequence of its own, since partitioned tables share it."""
    sequence = Sequence(f"{table}_id", metadata=metadata)
    return Column("id", BigInteger, sequence, nullable=False, server_default=sequence.next_value(), autoincrement=False)


def _where(name: str, *columns: str | TextClause, where: str, **options: Any) -> Index:
    return Index(name, *columns, postgresql_where=text(where), **options)


clock = Table(
    "clock", metadata,
    _key("one", Boolean, server_default=text("true")),
    _must("shift", Interval, "'0'"),
    CheckConstraint("one"),
)  # fmt: skip

app = Table(
    "app", metadata,
    _key("id"),
    _must("name", Text),
    _may("default_mailbox_id", Uuid),
    _must("on_unknown", Text, "'hold'"),
    _now("created_at"),
    UniqueConstraint("name"),
    CheckConstraint("on_unknown IN ('hold', 'resend')"),
)  # fmt: skip

provider_app = Table(
    "provider_app", metadata,
    _key("name", Text),
    _must("provider", Text),
    _may("per_minute", Integer),
    _now("created_at"),
    _may("app_id", Uuid, ForeignKey("outtray.app.id")),
    _must("kind", Text, "'oauth'"),
    _may("client_id", Text),
    _may("tenant", Text),
    _may("secret", LargeBinary),
    _must("secret_version", Integer, "1"),
    _must("status", Text, "'active'"),
    _may("status_reason", Text),
    _moment("status_at"),
    _may("units_per_minute", Integer),
    _may("user_units_per_minute", Integer),
    CheckConstraint("per_minute > 0"),
    CheckConstraint("units_per_minute > 0"),
    CheckConstraint("user_units_per_minute > 0"),
    CheckConstraint("kind IN ('oauth', 'service_account', 'client_credentials')"),
    CheckConstraint("status IN ('active', 'refused')"),
)  # fmt: skip

mailbox = Table(
    "mailbox", metadata,
    _key("id"),
    Column("app_id", Uuid, ForeignKey("outtray.app.id"), nullable=False),
    _must("provider", Text),
    _may("provider_app", Text, ForeignKey("outtray.provider_app.name")),
    _must("host", Text),
    _must("address", LargeBinary),
    _must("address_index", LargeBinary),
    _must("plan", Text),
    _must("limits", JSONB, "'{}'"),
    _must("server", JSONB, "'{}'"),
    _may("credentials", LargeBinary),
    _must("credentials_version", Integer, "1"),
    _must("status", Text, "'active'"),
    _may("status_reason", Text),
    _moment("status_at"),
    _moment("parked_until"),
    _may("parked_reason", Text),
    _must("parks", Integer, "0"),
    _moment("next_at"),
    _moment("round_at"),
    _must("turn_fence", BigInteger, "0"),
    _moment("turn_until"),
    _may("turn_worker", Text),
    _must("dead_turns", SmallInteger, "0"),
    _now("created_at"),
    _must("scopes", ARRAY(Text), "'{}'"),
    _may("on_unknown", Text),
    _must("learned", JSONB, "'{}'"),
    _may("times", JSONB),
    _may("logins", JSONB),
    UniqueConstraint("app_id", "address_index"),
    CheckConstraint("status IN ('active', 'paused', 'reconnect', 'disabled')"),
    CheckConstraint("turn_until IS NULL OR turn_fence > 0"),
    CheckConstraint("on_unknown IN ('hold', 'resend')"),
    _where("mailbox_due", "app_id", "next_at", where="next_at IS NOT NULL AND status = 'active'"),
    _where("mailbox_turn", "app_id", "turn_until", where="turn_until IS NOT NULL"),
    postgresql_with={"fillfactor": 70},
)  # fmt: skip

message = Table(
    "message", metadata,
    _key("id"),
    _must("app_id", Uuid),
    _must("mailbox_id", Uuid),
    _may("idempotency", LargeBinary),
    _must("request_hash", LargeBinary),
    _must("state", Text, "'queued'"),
    _must("version", Integer, "0"),
    _moment("due_at"),
    _must("priority", SmallInteger, "1"),
    _must("attempt", SmallInteger, "0"),
    _must("prepares", SmallInteger, "0"),
    _moment("failing_since"),
    _may("give_up_after", Interval),
    _moment("expires_at"),
    _may("on_unknown", Text),
    _must("recipients", Integer),
    _must("external", Integer),
    _must("size", BigInteger),
    _must("handover", Integer, "0"),
    _moment("handed_at"),
    _moment("handover_until"),
    _moment("handover_end"),
    _may("handover_fence", BigInteger),
    _moment("counted_at"),
    _must("may_have_left", Boolean, "false"),
    _moment("cancel_asked_at"),
    _may("provider_id", Text),
    _may("rfc_message_id", Text),
    _may("conversation_id", Text),
    _may("reason", Text),
    _may("evidence", JSONB),
    _must("tags", ARRAY(Text), "'{}'"),
    _now("created_at"),
    _moment("ended_at"),
    _may("draft", JSONB),
    _must("only_draft", Boolean, "false"),
    _moment("look_at"),
    _must("looks", SmallInteger, "0"),
    _may("look_handover", Integer),
    _may("looked", JSONB),
    _may("draft_end", Text),
    _may("follows", Uuid),
    _may("follow_after", Interval),
    _moment("follow_from"),
    _may("go_on", ARRAY(Text)),
    _must("has_followers", Boolean, "false"),
    _may("times", JSONB),
    _may("continues", Uuid),
    _moment("copy_at"),
    _must("copy_tries", SmallInteger, "0"),
    _may("copy_end", Text),
    _may("template", Text),
    _moment("erase_asked_at"),
    CheckConstraint(
        "state IN ('queued', 'handing_over', 'unknown', 'sent', 'drafted', 'failed', 'cancelled', 'expired')"
    ),
    CheckConstraint("priority IN (0, 1, 2)"),
    CheckConstraint("attempt >= 0"),
    CheckConstraint("on_unknown IN ('hold', 'resend')"),
    CheckConstraint("recipients > 0"),
    CheckConstraint("external BETWEEN 0 AND recipients"),
    CheckConstraint(
        "state <> 'handing_over' OR (handed_at IS NOT NULL AND handover_until IS NOT NULL AND handover > 0)"
    ),
    CheckConstraint("(state IN ('sent', 'drafted', 'failed', 'cancelled', 'expired')) = (ended_at IS NOT NULL)"),
    _where("message_idempotency", "app_id", "idempotency", where="idempotency IS NOT NULL", unique=True),
    _where("message_due", "mailbox_id", "priority", "due_at", where="state = 'queued' AND due_at IS NOT NULL"),
    _where("message_open", "handover_until", where="state IN ('handing_over', 'unknown')"),
    _where(
        "message_ledger", "mailbox_id", "counted_at", where="counted_at IS NOT NULL",
        postgresql_include=["recipients", "external"],
    ),
    _where("message_expiry", "expires_at", where="state = 'queued' AND expires_at IS NOT NULL"),
    _where("message_attention", "app_id", "state", "id", where="state IN ('unknown', 'failed')"),
    Index("message_mailbox", "mailbox_id", "id"),
    CheckConstraint("draft_end IN ('deleted', 'gone', 'kept')"),
    _where("message_look", "app_id", "look_at", where="look_at IS NOT NULL"),
    _where(
        "message_unlooked", "id",
        where="(state = 'unknown' OR state = 'sent' AND evidence ? 'look_again')"
        " AND look_handover IS DISTINCT FROM handover"
        " OR state IN ('cancelled', 'expired', 'failed') AND (draft IS NOT NULL OR prepares > 0)"
        " AND draft_end IS NULL AND look_handover IS DISTINCT FROM -1",
    ),
    _where("message_provider_id", "provider_id", where="provider_id IS NOT NULL"),
    _where("message_follows", "follows", where="follows IS NOT NULL"),
    _where("message_delivered_id", "rfc_message_id", where="strpos(rfc_message_id, id::text) = 0"),
    CheckConstraint("copy_end IN ('filed', 'found', 'given up')"),
    _where("message_continues", "continues", where="continues IS NOT NULL", unique=True),
    _where(
        "message_copy", text("copy_at NULLS FIRST"),
        where="state = 'sent' AND evidence ? 'sent_copy' AND copy_end IS NULL",
    ),
    _where("message_erase", "id", where="erase_asked_at IS NOT NULL"),
    postgresql_with={
        "fillfactor": 85, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.02,
    },
)  # fmt: skip

template = Table(
    "template", metadata,
    Column("app_id", Uuid, ForeignKey("outtray.app.id"), nullable=False),
    _must("name", Text),
    _must("version", Integer),
    _must("source", LargeBinary),
    _must("variables", ARRAY(Text)),
    _must("actor", Text),
    _now("created_at"),
    PrimaryKeyConstraint("app_id", "name", "version"),
    CheckConstraint("version > 0"),
)  # fmt: skip

following = Table(
    "following", metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _must("message_id", Uuid),
)  # fmt: skip

token = Table(
    "token", metadata,
    Column("mailbox_id", Uuid, ForeignKey("outtray.mailbox.id", ondelete="CASCADE"), nullable=False),
    _must("audience", Text, "''"),
    _may("access", LargeBinary),
    _must("version", Integer, "0"),
    _moment("expires_at"),
    _must("refreshing", Integer, "0"),
    _moment("refreshing_until"),
    PrimaryKeyConstraint("mailbox_id", "audience"),
    postgresql_with={"fillfactor": 70},
)  # fmt: skip

consent = Table(
    "consent", metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("mailbox_id", Uuid, ForeignKey("outtray.mailbox.id", ondelete="CASCADE"), nullable=False),
    _now("at"),
    _must("actor", Text),
    _may("provider_app", Text),
    _must("kind", Text),
    _must("scopes", ARRAY(Text), "'{}'"),
    CheckConstraint("kind IN ('connected', 'reconnected', 'disconnected', 'revoked')"),
    Index("consent_mailbox", "mailbox_id"),
)  # fmt: skip

unknown_signal = Table(
    "unknown_signal", metadata,
    _must("provider", Text),
    _must("signal", Text),
    _must("times", BigInteger, "1"),
    _now("first_at"),
    _now("last_at"),
    PrimaryKeyConstraint("provider", "signal"),
)  # fmt: skip

recipient = Table(
    "recipient", metadata,
    _of_message(),
    _must("n", SmallInteger),
    _must("role", Text),
    _must("address", LargeBinary),
    _must("address_index", LargeBinary),
    _must("external", Boolean),
    _may("result", Text),
    PrimaryKeyConstraint("message_id", "n"),
    CheckConstraint("role IN ('to', 'cc', 'bcc')"),
    Index("recipient_address", "address_index", "message_id"),
)  # fmt: skip

refused_recipient = Table(
    "refused_recipient", metadata,
    _of_message(),
    _must("handover", Integer),
    _must("n", SmallInteger),
    _must("again", Boolean),
    _must("reason", Text),
    _must("settled", Boolean, "false"),
    PrimaryKeyConstraint("message_id", "handover", "n"),
    _where("refused_recipient_open", "message_id", where="NOT settled"),
)  # fmt: skip

message_tag = Table(
    "message_tag", metadata,
    _must("app_id", Uuid),
    _must("tag", Text),
    _of_message(),
    PrimaryKeyConstraint("app_id", "tag", "message_id"),
    Index("message_tag_message", "message_id"),
)  # fmt: skip

content = Table(
    "content", metadata,
    _of_message(primary_key=True),
    _must("head", LargeBinary),
    _may("body", LargeBinary),
    _must("body_hash", LargeBinary),
)  # fmt: skip

content_chunk = Table(
    "content_chunk", metadata,
    _of_message(),
    _must("n", Integer),
    _must("data", LargeBinary),
    PrimaryKeyConstraint("message_id", "n"),
)  # fmt: skip

attachment = Table(
    "attachment", metadata,
    _key("id"),
    _must("app_id", Uuid),
    _must("digest", LargeBinary),
    _must("size", BigInteger),
    _now("created_at"),
    CheckConstraint("size > 0"),
    Index("attachment_digest", "app_id", "digest"),
)  # fmt: skip

attachment_chunk = Table(
    "attachment_chunk", metadata,
    Column("attachment_id", Uuid, ForeignKey("outtray.attachment.id", ondelete="CASCADE"), nullable=False),
    _must("n", Integer),
    _must("data", LargeBinary),
    PrimaryKeyConstraint("attachment_id", "n"),
)  # fmt: skip

content_attachment = Table(
    "content_attachment", metadata,
    Column("message_id", Uuid, ForeignKey("outtray.content.message_id", ondelete="CASCADE"), nullable=False),
    Column("attachment_id", Uuid, ForeignKey("outtray.attachment.id"), nullable=False),
    PrimaryKeyConstraint("message_id", "attachment_id"),
    Index("content_attachment_needed", "attachment_id"),
)  # fmt: skip

usage = Table(
    "usage", metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _must("mailbox_id", Uuid),
    _must("counted_at", TIMESTAMP(timezone=True)),
    _must("messages", Integer, "1"),
    _must("recipients", Integer),
    _must("external", Integer),
    _must("externals", ARRAY(LargeBinary), "'{}'"),
    _may("message_id", Uuid),
    _may("handover", Integer),
    _must("source", Text),
    CheckConstraint("messages >= 0"),
    CheckConstraint("recipients >= 0"),
    CheckConstraint("external >= 0"),
    Index("usage_ledger", "mailbox_id", "counted_at"),
    _where("usage_handover", "message_id", "handover", where="message_id IS NOT NULL", unique=True),
)  # fmt: skip

budget = Table(
    "budget", metadata,
    _key("id"),
    _must("name", Text),
    _must("measure", Text),
    _must("per_day", Integer),
    _may("tenant", Text),
    UniqueConstraint("name"),
    CheckConstraint("measure IN ('messages', 'recipients', 'external')"),
    CheckConstraint("per_day >= 0"),
)  # fmt: skip

budget_hour = Table(
    "budget_hour", metadata,
    Column("budget_id", Uuid, ForeignKey("outtray.budget.id", ondelete="CASCADE"), nullable=False),
    _must("hour", TIMESTAMP(timezone=True)),
    _must("used", Integer),
    PrimaryKeyConstraint("budget_id", "hour"),
    postgresql_with={"fillfactor": 50},
)  # fmt: skip

mailbox_budget = Table(
    "mailbox_budget", metadata,
    Column("mailbox_id", Uuid, ForeignKey("outtray.mailbox.id", ondelete="CASCADE"), nullable=False),
    Column("budget_id", Uuid, ForeignKey("outtray.budget.id", ondelete="CASCADE"), nullable=False),
    PrimaryKeyConstraint("mailbox_id", "budget_id"),
)  # fmt: skip

switch = Table(
    "switch", metadata,
    _must("kind", Text),
    _must("target", Text),
    _now("since"),
    _must("actor", Text),
    _must("why", Text, "''"),
    PrimaryKeyConstraint("kind", "target"),
    CheckConstraint("kind IN ('all', 'app', 'provider', 'tag')"),
)  # fmt: skip

refusal = Table(
    "refusal", metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _must("app_id", Uuid),
    _now("at"),
    _must("problems", JSONB),
    _must("address_indexes", ARRAY(LargeBinary), "'{}'"),
    _may("mailbox_index", LargeBinary),
    Index("refusal_address", "address_indexes", postgresql_using="gin"),
    Index("refusal_at", "at"),
)  # fmt: skip

breaker = Table(
    "breaker", metadata,
    _key("provider_app", Text),
    _key("host", Text),
    _must("opened_at", TIMESTAMP(timezone=True)),
    _moment("closed_at"),
    _must("reason", Text),
    _must("probes", Integer, "0"),
    _must("probe_at", TIMESTAMP(timezone=True)),
    CheckConstraint("probes >= 0"),
)  # fmt: skip

suppression = Table(
    "suppression", metadata,
    _must("app_id", Uuid),
    _must("address_index", LargeBinary),
    _must("address", LargeBinary),
    _must("reason", Text),
    _now("created_at"),
    PrimaryKeyConstraint("app_id", "address_index"),
)  # fmt: skip

process = Table(
    "process", metadata,
    _key("id", Text),
    _must("role", Text),
    _now("started_at"),
    _now("beat_at"),
    _must("info", JSONB, "'{}'"),
)  # fmt: skip

event = Table(
    "event", metadata,
    _of_number("event"),
    _now("at"),
    _must("xact", Xid8, "pg_current_xact_id()"),
    _must("app_id", Uuid),
    _may("mailbox_id", Uuid),
    _may("message_id", Uuid),
    _must("kind", Text),
    _must("data", JSONB, "'{}'"),
    Index("event_xact", "xact"),
    Index("event_order", "id"),
    _where("event_message", "message_id", where="message_id IS NOT NULL"),
    postgresql_partition_by="RANGE (at)",
)  # fmt: skip

journal = Table(
    "journal", metadata,
    _of_number("journal"),
    _now("at"),
    _may("message_id", Uuid),
    _may("mailbox_id", Uuid),
    _must("kind", Text),
    _may("handover", Integer),
    _may("actor", Text),
    _may("detail", JSONB),
    _where("journal_message", "message_id", where="message_id IS NOT NULL"),
    _where("journal_mailbox", "mailbox_id", where="message_id IS NULL"),
    Index("journal_order", "id"),
    postgresql_partition_by="RANGE (at)",
)  # fmt: skip

journal_link = Table(
    "journal_link", metadata,
    _must("id", BigInteger),
    _must("at", TIMESTAMP(timezone=True)),
    _must("chain", Uuid),
    _must("hash", LargeBinary),
    _may("carried", LargeBinary),
    Index("journal_link_chain", "chain", "id"),
    Index("journal_link_number", "id", postgresql_using="brin", postgresql_with={"autosummarize": "true"}),
    postgresql_partition_by="RANGE (at)",
)  # fmt: skip

journal_seal = Table(
    "journal_seal", metadata,
    _key("day", Date),
    _must("after_id", BigInteger),
    _must("to_id", BigInteger),
    _must("links", BigInteger),
    _must("previous", LargeBinary),
    _must("digest", LargeBinary),
    _now("sealed_at"),
    _moment("dropped_at"),
    CheckConstraint("to_id >= after_id"),
)  # fmt: skip

journal_sealing = Table(
    "journal_sealing", metadata,
    _key("one", Boolean, server_default=text("true")),
    _must("sealed_to", BigInteger, "0"),
    _must("sealed_at", TIMESTAMP(timezone=True), "'epoch'"),
    _must("next_to", BigInteger, "0"),
    _must("next_at", TIMESTAMP(timezone=True), "'epoch'"),
    _must("next_before", Xid8, "'0'"),
    _must("seen_to", BigInteger, "0"),
    _must("seen_at", TIMESTAMP(timezone=True), "'epoch'"),
    _must("links", BigInteger, "0"),
    _must("digest", LargeBinary, "decode(repeat('00', 32), 'hex')"),
    CheckConstraint("one"),
)  # fmt: skip
