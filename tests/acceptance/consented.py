"""A mailbox that is connected by consent, for the search for canaries: Graph and Entra with everything that is secret.

Its mail is sent by a draft and an upload session; then a draft is refused with all of it quoted, and at last the OAuth
client is refused. So a refresh token, access tokens, a client secret and upload URLs have all been in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from acceptance.canaries import Canaries
from acceptance.scene import Scene
from outtray import Message
from outtray_sandbox.microsoft import Ledger, MicrosoftHouse, MicrosoftServer
from outtray_schema.attachment import Attachment
from polling import eventually

CLIENT, APP = "client-1", "graph"
SCOPES = ("https://graph.microsoft.com/Mail.ReadWrite", "https://graph.microsoft.com/Mail.Send")
FILE = 4 * 1024 * 1024
"""Bytes: Graph takes files from 3 MB on by an upload session alone (attachment: createUploadSession, docs, 2026-11)."""


@dataclass
class Consented:
    """A running Microsoft 365, and one person there."""

    canaries: Canaries
    house: MicrosoftHouse
    server: MicrosoftServer
    urls: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """Of a process that shall find them."""
        return {"graph_url": self.server.graph_url, "entra_url": self.server.entra_url}

    @property
    def address(self) -> str:
        return f"{self.canaries['sender']}.consented@example.org"

    def connect(self, town: Scene) -> UUID:
        """The mailbox, as if its owner had just consented."""
        self.house.add_user(self.address)
        self.house.add_client(CLIENT, secret=self.canaries["secret"])
        token = self.house.issue_refresh(self.address, CLIENT, frozenset(SCOPES))
        town.client.provider_apps.add(APP, "microsoft", client_id=CLIENT, secret=self.canaries["secret"])
        return town.client.mailboxes.add_microsoft(
            self.address, refresh_token=token, scopes=SCOPES, provider_app=APP, tenant="contoso"
        ).id

    def use(self, town: Scene, box: UUID) -> None:
        """Everything that is secret is in use, and quoted by whoever refuses."""
        self._send(town, box, "sent", [Attachment("a.bin", b"x" * FILE)])
        quoted = f"{self.address} {self.canaries['recipient']}@example.net {self._newest()} {self.urls[-1]}"
        refusal = {"error": {"code": "ErrorInvalidRecipients", "message": quoted}}
        self.server.add_rule(stage="messages.create", status=400, body=refusal, times=1)
        self._send(town, box, "failed")
        self.house.clients[CLIENT].secret_expired = True
        self.house.expire_tokens()
        with town.database.connect() as db:
            db.execute("UPDATE outtray.token SET expires_at = outtray.outtray_now()")
        self._enqueue(town, box)
        refused = "SELECT status FROM outtray.provider_app"
        eventually(lambda: town.one(refused) == "refused", 40, "the OAuth client is refused")
        self._learn()

    def _send(self, town: Scene, box: UUID, becomes: str, files: list[Attachment] | None = None) -> None:
        message = self._enqueue(town, box, files)
        state = "SELECT state FROM outtray.message WHERE id = %s"
        eventually(lambda: self._note_urls() or town.one(state, message) == becomes, 40, f"it is {becomes}")

    def _enqueue(self, town: Scene, box: UUID, files: list[Attachment] | None = None) -> UUID:
        to, subject = f"{self.canaries['recipient']}@example.net", self.canaries["subject"]
        message = Message(to=to, subject=subject, text=self.canaries["body"], attachments=files or (), mailbox=box)
        return town.client.enqueue(message).id

    def _note_urls(self) -> None:
        self.urls += [each["path"] for each in list(self.house.uploads.values()) if each["path"] not in self.urls]

    def _newest(self) -> str:
        return list(self.house.tokens)[-1]

    def _learn(self) -> None:
        """What the servers gave out is to be found nowhere either."""
        given = {"refresh token": self.house.refresh_tokens, "access token": self.house.tokens, "upload url": self.urls}
        for kind, texts in given.items():
            assert texts, f"a {kind} was in use"
            self.canaries.values |= {f"{kind} {number}": text for number, text in enumerate(texts)}
            assert self.canaries.found_in(f"quoted: {list(texts)[-1]}"), "the search knows it"


@contextmanager
def consented(canaries: Canaries, folder: Path) -> Iterator[Consented]:
    house = MicrosoftHouse(Ledger(folder / "graph.jsonl"), sent_copy_after=0.0)
    with MicrosoftServer(house) as server:
        yield Consented(canaries, house, server)
