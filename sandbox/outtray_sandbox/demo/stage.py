"""The stage: PostgreSQL, Valkey, mail servers, mailboxes and processes, all in a folder that is thrown away."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from outtray import Outtray
from outtray.mailboxes import Mailbox, UsageRow
from outtray_sandbox.accepted import Accepted
from outtray_sandbox.demo.cast import HOSTS, PLAYERS, Player
from outtray_sandbox.demo.crew import Crew
from outtray_sandbox.demo.servers import Server, connect, places, serve
from outtray_sandbox.services import Services
from outtray_schema.database import conninfo
from outtray_schema.keyfile import new_key_file
from outtray_schema.migrate import migrate
from outtray_schema.settings import Settings

SHORTENED: Mapping[str, timedelta] = {
    "lease": timedelta(seconds=4),
    "turn_length": timedelta(seconds=4),
    "round_again": timedelta(seconds=4),
    "sweep_every": timedelta(seconds=3),
    "tend_every": timedelta(milliseconds=500),
    "handover_begin": timedelta(seconds=2),
    "handover_answer": timedelta(seconds=6),
    "prepare_limit": timedelta(seconds=8),
    "connect_timeout": timedelta(seconds=5),
    "command_timeout": timedelta(seconds=5),
    "settle_time": timedelta(seconds=4),
    "backoff_base": timedelta(seconds=1),
    "backoff_cap": timedelta(seconds=4),
    "park_cap": timedelta(seconds=3),
    "breaker_probe": timedelta(seconds=1),
    "breaker_probe_cap": timedelta(seconds=3),
    "drain_limit": timedelta(seconds=10),
}
"""What takes minutes in earnest and seconds here. The demo says so on screen."""

LOOK_SCALE = 0.02
"""Looks for evidence come so much sooner, and their providers settle so much sooner (5 minutes become 6 s)."""

STATEMENT_TIMEOUT = "5s"
USED_AGO = timedelta(hours=20)
"""How long ago the imported usage left: its window frees this much earlier than a day."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that plays. `boxes` are the mailboxes by address, as they were connected."""

    folder: Path
    settings: Settings
    services: Services
    servers: Mapping[str, Server]
    client: Outtray
    boxes: Mapping[str, Mailbox]
    database: Connection[DictRow]
    crew: Crew

    def server_of(self, player: Player) -> Server:
        return self.servers[player.host]

    def player_of(self, mailbox_id: UUID | None) -> Player | None:
        """Who plays this mailbox."""
        return next((player for player in PLAYERS if self.boxes[player.address].id == mailbox_id), None)

    def taken(self) -> list[Accepted]:
        """What the servers' own ledgers say that they took."""
        return [accepted for server in self.servers.values() for accepted in server.ledger.read()]


@contextmanager
def set_up(settings: Settings, seed: int) -> Iterator[Stage]:
    """Build the stage, and take it down again whatever happened. Nothing of a real installation is touched."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="outtray-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        services = stack.enter_context(Services.start(folder, durable=True, keep=False))
        servers = {host.name: stack.enter_context(serve(host, folder, seed)) for host in HOSTS}
        ours = _settings(settings, services, folder, places(servers))
        migrate(ours)
        client = stack.enter_context(Outtray(ours, actor="demo"))
        client.apps.add("default")
        boxes = {player.address: _connect(client, player, servers[player.host]) for player in PLAYERS}
        database = stack.enter_context(_connection(ours))
        crew = Crew(_environment(ours, places(servers)), folder)
        stack.callback(crew.close)
        yield Stage(folder, ours, services, servers, client, boxes, database, crew)


def messages() -> list[dict[str, Any]]:
    """The messages that ship with the project, in the form that `outtray send --file` reads too."""
    text = resources.files("outtray_sandbox.demo").joinpath("messages.ndjson").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _settings(settings: Settings, services: Services, folder: Path, urls: Mapping[str, str]) -> Settings:
    new_key_file(folder / "keys.json")
    return settings.model_copy(
        update={
            **SHORTENED,
            **urls,
            "look_scale": LOOK_SCALE,
            "database_url": services.database_url,
            "redis_url": services.redis_url,
            "data_folder": folder,
            "key_file": folder / "keys.json",
            "keys": None,
            "app": "default",
            "spool_folder": None,
        }
    )


def _environment(settings: Settings, urls: Mapping[str, str]) -> dict[str, str]:
    """The same settings for the processes."""
    named = {name: f"{value.total_seconds():g}s" for name, value in SHORTENED.items()}
    named |= {
        **urls,
        "look_scale": str(LOOK_SCALE),
        "database_url": str(settings.database_url),
        "redis_url": str(settings.redis_url),
        "data_folder": str(settings.data_folder),
        "key_file": str(settings.key_file),
    }
    return {f"OUTTRAY_{name.upper()}": value for name, value in named.items()}


def _connect(client: Outtray, player: Player, server: Server) -> Mailbox:
    box = connect(client, player, server)
    if used := player.used_elsewhere:
        row = UsageRow(datetime.now(UTC) - USED_AGO, messages=used, recipients=used, external=used)
        client.mailboxes.import_usage(box.id, [row])
    return box


@contextmanager
def _connection(settings: Settings) -> Iterator[Connection[DictRow]]:
    options = f"-c statement_timeout={STATEMENT_TIMEOUT}"
    with psycopg.connect(
        conninfo(settings), autocommit=True, row_factory=dict_row, connect_timeout=5, options=options
    ) as connection:
        yield connection
