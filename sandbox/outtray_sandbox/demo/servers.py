"""The demo's servers and how each player's mailbox is connected to theirs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from outtray import Outtray
from outtray.mailboxes import Mailbox
from outtray_sandbox.demo.cast import PLAYERS, Host, Player
from outtray_sandbox.google import GoogleHouse, GoogleServer
from outtray_sandbox.microsoft import MicrosoftHouse, MicrosoftServer
from outtray_sandbox.smtp import SmtpServer
from outtray_sandbox.web import Ledger
from outtray_schema.consent import SCOPES

Server = SmtpServer | GoogleServer | MicrosoftServer
APP = "demo"
"""The OAuth client at each API."""


@contextmanager
def serve(host: Host, folder: Path, seed: int) -> Iterator[Server]:
    """A server with its players, and a ledger in a folder of its own."""
    place = folder / host.name
    place.mkdir()
    with _made(host, place / "accepted.jsonl", seed) as server:
        yield server


def _made(host: Host, ledger: Path, seed: int) -> Server:
    players = [player for player in PLAYERS if player.host == host.name]
    if host.speaks == "gmail":
        return _google(host, Ledger(ledger), players, seed)
    if host.speaks == "microsoft":
        return _microsoft(host, Ledger(ledger), players, seed)
    users = {player.address: secrets.token_urlsafe(12) for player in players}
    return SmtpServer(ledger, users=users, tls=host.speaks, latency=host.latency, seed=seed)


def _google(host: Host, ledger: Ledger, players: list[Player], seed: int) -> GoogleServer:
    house = GoogleHouse(ledger, latency=host.latency, seed=seed)
    house.add_client(APP, secrets.token_urlsafe(12))
    for player in players:
        house.add_user(player.address, player.name)
    return GoogleServer(house)


def _microsoft(host: Host, ledger: Ledger, players: list[Player], seed: int) -> MicrosoftServer:
    house = MicrosoftHouse(ledger, latency=host.latency, seed=seed)
    house.add_client(APP, secret=secrets.token_urlsafe(12))
    for player in players:
        house.add_user(player.address)
    return MicrosoftServer(house)


def places(servers: Mapping[str, Server]) -> dict[str, str]:
    """The settings that lead to the APIs."""
    found: dict[str, str] = {}
    for server in servers.values():
        if isinstance(server, GoogleServer):
            found |= {"gmail_url": server.url, "google_token_url": server.token_url}
        elif isinstance(server, MicrosoftServer):
            found |= {"graph_url": server.graph_url, "entra_url": server.entra_url}
    return found


def connect(client: Outtray, player: Player, server: Server) -> Mailbox:
    """The player's mailbox: by password, or by a consent that they gave at their provider."""
    if isinstance(server, SmtpServer):
        return _by_password(client, player, server)
    if isinstance(server, GoogleServer):
        scopes = SCOPES["google"]["compose"]
        client.provider_apps.add("google", "google", client_id=APP, secret=server.house.tokens.clients[APP].secret)
        return client.mailboxes.add_google(
            player.address, refresh_token=server.house.grant(player.address, scopes, APP), scopes=scopes,
            provider_app="google", name=player.name, plan=player.plan,
        )  # fmt: skip
    scopes = SCOPES["microsoft"]["compose"]
    client.provider_apps.add("microsoft", "microsoft", client_id=APP, secret=server.house.clients[APP].secret)
    return client.mailboxes.add_microsoft(
        player.address, refresh_token=server.house.issue_refresh(player.address, APP, frozenset(scopes)), scopes=scopes,
        provider_app="microsoft", name=player.name, plan=player.plan,
    )  # fmt: skip


def _by_password(client: Outtray, player: Player, server: SmtpServer) -> Mailbox:
    return client.mailboxes.add_smtp(
        player.address,
        name=player.name,
        host=server.host,
        port=server.port,
        tls="implicit" if server.house.tls == "implicit" else "starttls",
        password=server.house.users[player.address],
        plan=player.plan,
        ca_file=server.ca_file,
    )
