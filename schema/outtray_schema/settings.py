"""One frozen settings object per process, read from the environment in one place and passed in.

Every time constant of the protocol is a field here, so that tests and the demo can shorten them and say so.
Nothing is read at import. `docs/settings.md` explains each; a wrong value raises `SettingsError`, which names the
variable and shows an example.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from outtray_schema.errors import SettingsError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> Any:
    """`"30s"`, `"250ms"`, `"15m"`, `"24h"`, `"7d"` or plain seconds, as a `timedelta`."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, (int, float)):
        return timedelta(seconds=value)
    text = str(value).strip().lower()
    for unit in ("ms", "s", "m", "h", "d"):
        number = text.removesuffix(unit)
        if number != text:
            break
    else:
        number, unit = text, "s"
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        raise ValueError(f"{value!r} is no duration; write it like 30s, 250ms, 15m, 24h or 7d") from None
    return timedelta(seconds=seconds)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


def check_provider_url(value: str) -> str:
    """A URL that tokens and mails may be sent to: https, or http to this very machine, for the sandbox."""
    split = urlsplit(value)
    if split.scheme == "https" and split.hostname:
        return value.rstrip("/")
    if split.scheme == "http" and _is_loopback(split.hostname or ""):
        return value.rstrip("/")
    raise ValueError("a provider's URL begins with https://; http:// is for loopback addresses alone")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


ProviderUrl = Annotated[str, AfterValidator(check_provider_url)]


def default_data_folder() -> Path:
    """Where the embedded services keep their data when no folder is named: `$XDG_DATA_HOME/outtray`."""
    base = os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share"
    return Path(base) / "outtray"


def _home() -> Path:
    """The user's own folder, also where `HOME` is empty; for a user without one, a folder that nobody can make."""
    try:
        return Path(os.environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return Path("/nonexistent")


class Settings(BaseSettings):
    """What a process can be told: each field is the environment variable `OUTTRAY_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="OUTTRAY_", frozen=True, extra="ignore", env_ignore_empty=True)

    # ── where things are ────────────────────────────────────────────────────────────────────────────────────────
    database_url: str | None = Field(
        None, description="PostgreSQL, e.g. postgresql://outtray@db/outtray. Unset: the embedded server"
    )
    redis_url: str | None = Field(
        None, description="Redis or Valkey, e.g. redis://cache:6379/0. Unset: the embedded server"
    )
    data_folder: Path = Field(
        default_factory=default_data_folder, description="Embedded services, their keys, and the spool"
    )
    key_file: Path | None = Field(
        None, description="Key rings as JSON, made by `outtray keys new`. Embedded: data folder/keys.json"
    )
    keys: SecretStr | None = Field(
        None, description="The key file's JSON itself, where a file cannot be mounted; wins over the file"
    )
    app: str = Field("default", description="The app that the client and the command line speak for")
    log_format: str = Field("text", pattern="^(text|json)$", description="text for people, json for collectors")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        examples=[9464],
        description="Where a worker answers Prometheus, e.g. 9464. Unset: nowhere",
    )
    metrics_host: str = Field("127.0.0.1", description="The address that it listens on; 0.0.0.0 in a pod")

    # ── dispatcher ──────────────────────────────────────────────────────────────────────────────────────────────
    round_mailboxes: int = Field(64, ge=1, le=1000, description="Mailboxes in one Celery task")
    round_backlog: int = Field(8, ge=1, description="Rounds that may wait in the broker at once")
    round_again: Duration = Field(
        timedelta(seconds=30), description="A round that never began is published again after this"
    )
    pick_every: Duration = Field(
        timedelta(milliseconds=250), description="Longest pause between two looks for due mailboxes"
    )
    sweep_every: Duration = Field(timedelta(seconds=60), description="How often lost wakes are looked for")
    sweep_every_without_redis: Duration = Field(timedelta(seconds=5), description="The same while Redis is away")
    tend_every: Duration = Field(timedelta(seconds=1), description="Dead turns, overdue handovers, expiry")
    prune_every: Duration = Field(timedelta(hours=1), description="Retention and partitions")
    keep_messages: Duration = Field(
        timedelta(days=90), description="Ended messages are deleted after this; at least 7 days"
    )
    keep_content: Duration = Field(
        timedelta(days=30), description="Content of ended messages is erased after this, their addresses with it"
    )
    keep_refusals: Duration = Field(
        timedelta(days=7), description="What was refused at the door is forgotten after this"
    )
    keep_events: Duration = Field(timedelta(days=30), description="Events are dropped after this")
    keep_journal: Duration = Field(timedelta(days=365), description="Journal days are dropped after this")

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────
    engine_turns: int = Field(512, ge=1, description="Turns that one worker process runs at once")
    host_share: float = Field(
        0.5, gt=0, le=1, description="Share of the engine's turns that one provider host may hold"
    )
    host_busy_pause: Duration = Field(
        timedelta(seconds=1), description="A mailbox given back because its host is busy waits this long"
    )
    turn_length: Duration = Field(timedelta(seconds=20), description="A turn takes no new message after this")
    turn_messages: int = Field(50, ge=1, description="Messages that one turn reads and may deliver")
    lease: Duration = Field(timedelta(seconds=30), description="A turn's lease; renewed each third of it")
    broker_patience: Duration = Field(
        timedelta(seconds=5), description="A worker without a broker picks mailboxes itself after this"
    )
    content_memory: int = Field(
        64 * 1024 * 1024, ge=4 * 1024 * 1024, description="Bytes of message content one worker process holds"
    )
    watchdog: Duration = Field(
        timedelta(seconds=30), description="A worker whose event loop stands still for this long ends itself"
    )
    suspect_alone: Duration = Field(
        timedelta(seconds=5), description="A message suspected of killing workers is prepared alone this long"
    )
    poison_after: int = Field(3, ge=1, description="Preparations that a message may cut short by its worker's death")

    # ── handover ────────────────────────────────────────────────────────────────────────────────────────────────
    handover_begin: Duration = Field(
        timedelta(seconds=30), description="From the gate's submission to the first byte that commits, at most"
    )
    handover_answer: Duration = Field(
        timedelta(seconds=600), description="Wait for the provider's answer; RFC 5321 4.5.3.2.6 asks 10 minutes"
    )
    prepare_limit: Duration = Field(
        timedelta(seconds=300), description="Connection, login and upload of one message, in all"
    )
    connect_timeout: Duration = Field(timedelta(seconds=30), description="TCP and TLS to a provider")
    command_timeout: Duration = Field(timedelta(seconds=120), description="One reply before the handover")
    settle_time: Duration = Field(
        timedelta(seconds=60), description="After a handover's deadline, before absence of evidence counts"
    )

    # ── looks for evidence ──────────────────────────────────────────────────────────────────────────────────────
    look_limit: Duration = Field(
        timedelta(seconds=60), description="One look for evidence about a handover without an outcome, at most"
    )
    looks_at_once: int = Field(
        16, ge=1, description="Mailboxes that one worker process looks into at once; a host has its share of them"
    )
    look_scale: float = Field(
        1.0, gt=0, le=1, description="For tests: the providers' times of looking and settling are multiplied by it"
    )

    # ── record ──────────────────────────────────────────────────────────────────────────────────────────────────
    group_limit: int = Field(256, ge=1, description="Gates and outcomes that one group commit takes")
    spool_after: Duration = Field(
        timedelta(seconds=10), description="An outcome that PostgreSQL does not take goes to the spool after this"
    )
    spool_folder: Path | None = Field(
        None, description="Where outcomes survive when PostgreSQL is away. Unset: data folder/spool"
    )
    drain_limit: Duration = Field(timedelta(seconds=660), description="SIGTERM waits this long for handovers under way")

    # ── retry and park ──────────────────────────────────────────────────────────────────────────────────────────
    attempts: int = Field(8, ge=1, description="A message's own failures before it gives up")
    give_up_after: Duration = Field(
        timedelta(hours=24), description="From a message's first own failure until it gives up"
    )
    backoff_base: Duration = Field(timedelta(seconds=10), description="First wait: full jitter, doubled each time")
    backoff_cap: Duration = Field(timedelta(minutes=15), description="Longest wait of a message")
    park_cap: Duration = Field(timedelta(hours=1), description="Longest wait of a mailbox whose provider named no time")
    park_hint_cap: Duration = Field(timedelta(hours=24), description="A provider's own wish is believed up to this")

    breaker_mailboxes: int = Field(
        5, ge=2, description="Mailboxes that a host must fail for, and more than half of them, until it is only probed"
    )
    breaker_unanswered: int = Field(
        3, ge=1, description="A mailbox rests after so many handovers without an answer in a row: each is unknown"
    )
    breaker_probe: Duration = Field(
        timedelta(seconds=5), description="First wait until a failing host is probed; doubled after each probe"
    )
    breaker_probe_cap: Duration = Field(timedelta(minutes=5), description="Longest wait between two probes")

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────
    token_timeout: Duration = Field(timedelta(seconds=10), description="One refresh of an access token, at most")
    token_lease: Duration = Field(
        timedelta(seconds=15), description="A mailbox's refresh is one worker's for this long; more than the time-out"
    )
    token_threads: int = Field(8, ge=1, le=64, description="Refreshes that one worker process runs at once")
    provider_app_probe: Duration = Field(
        timedelta(minutes=5), description="How often a refused OAuth client is tried again"
    )
    google_auth_url: ProviderUrl = Field(
        "https://accounts.google.com/o/oauth2/v2/auth", description="Where people consent at Google"
    )
    google_token_url: ProviderUrl = Field("https://oauth2.googleapis.com/token", description="Google's token endpoint")
    google_revoke_url: ProviderUrl = Field(
        "https://oauth2.googleapis.com/revoke", description="Google's revocation endpoint"
    )
    entra_url: ProviderUrl = Field(
        "https://login.microsoftonline.com", description="Microsoft's login; national clouds have their own"
    )

    # ── tests ───────────────────────────────────────────────────────────────────────────────────────────────────
    crash_at: str | None = Field(
        None,
        description="For fault tests only: the named point at which a worker kills itself, or the folder of aims at "
        "single messages",
    )

    # ── SMTP ────────────────────────────────────────────────────────────────────────────────────────────────────
    smtp_clear_loopback: bool = Field(
        False, description="Allow SMTP without TLS, to loopback addresses only: for the sandbox"
    )
    smtp_session_messages: int = Field(50, ge=1, description="Messages before an SMTP session is made anew")

    # ── Microsoft Graph ─────────────────────────────────────────────────────────────────────────────────────────
    graph_url: ProviderUrl = Field(
        "https://graph.microsoft.com/v1.0", description="Microsoft Graph; national clouds have their own"
    )

    # ── Gmail ───────────────────────────────────────────────────────────────────────────────────────────────────
    gmail_url: ProviderUrl = Field(
        "https://gmail.googleapis.com", description="The Gmail API, uploads too: a private gateway, or the sandbox"
    )
    key_header: str = Field(
        "X-Outtray-Key",
        pattern="^[Xx]-[A-Za-z0-9-]{1,60}$",
        description="Header of a mail that carries its message id: at Gmail, and where IMAP looks for what was sent",
    )

    # ── the door ────────────────────────────────────────────────────────────────────────────────────────────────
    message_size: int = Field(150 * 1024 * 1024, description="Largest message in bytes that any provider is offered")
    database_timeout: Duration = Field(
        timedelta(seconds=5), description="Connecting to PostgreSQL; then an error, never a hang"
    )
    redis_timeout: Duration = Field(
        timedelta(seconds=1), description="Publishing a wake; then the sweep finds the message"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if (self.database_url is None) != (self.redis_url is None):
            raise ValueError("set both OUTTRAY_DATABASE_URL and OUTTRAY_REDIS_URL, or neither for the embedded servers")
        if self.lease < timedelta(milliseconds=300):
            raise ValueError("OUTTRAY_LEASE must be at least 300ms: it is renewed each third of it")
        if self.watchdog < timedelta(seconds=1):
            raise ValueError("OUTTRAY_WATCHDOG must be at least 1s: a busy loop is no stuck one")
        if self.token_lease <= self.token_timeout:
            raise ValueError("OUTTRAY_TOKEN_LEASE must be longer than OUTTRAY_TOKEN_TIMEOUT: one refresh at a time")
        if self.keep_messages < timedelta(days=7):
            raise ValueError("OUTTRAY_KEEP_MESSAGES must be at least 7d: idempotency keys are promised that long")
        return self

    @property
    def handover_limit(self) -> timedelta:
        """From the gate's submission to the handover's hard deadline: what `handover_until` is set to."""
        return self.handover_begin + self.handover_answer

    @property
    def spool(self) -> Path:
        return self.spool_folder or self.data_folder / "spool"

    @property
    def embedded(self) -> bool:
        return self.database_url is None


def load_settings(**overrides: Any) -> Settings:
    """Read the environment once. Raises `SettingsError` that names the variable, the trouble and an example."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_complaint(item) for item in error.errors())) from None


def _complaint(item: Any) -> str:
    if not item["loc"]:
        return f"{item['msg'].removeprefix('Value error, ')} (docs/settings.md)"
    name = str(item["loc"][0])
    field = Settings.model_fields.get(name)
    default = field.get_default(call_default_factory=True) if field else None
    default = field.examples[0] if field and field.examples else default
    example = f"{default.total_seconds():g}s" if isinstance(default, timedelta) else default
    reason = item["msg"].removeprefix("Value error, ")
    return f"OUTTRAY_{name.upper()}: {reason}. Example: OUTTRAY_{name.upper()}={example} (docs/settings.md)"
