"""The fake Microsoft 365 over HTTP: Graph's routes, each with the permissions that open it, and Entra's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from outtray_sandbox.microsoft import entra
from outtray_sandbox.microsoft.admission import Admission
from outtray_sandbox.microsoft.house import MicrosoftHouse
from outtray_sandbox.microsoft.mail import complete, person, stamp
from outtray_sandbox.microsoft.mailbox import Item
from outtray_sandbox.microsoft.messages import Messages
from outtray_sandbox.microsoft.submission import Submission
from outtray_sandbox.microsoft.uploads import Uploads
from outtray_sandbox.web import Route, WebServer

READ = frozenset({"Mail.Read", "Mail.ReadWrite"})
WRITE = frozenset({"Mail.ReadWrite"})
SEND = frozenset({"Mail.Send"})
PROFILE = frozenset({"User.Read", "User.Read.All", "User.ReadWrite"})


class MicrosoftServer(WebServer):
    """`graph_url` and `entra_url` are what the settings of those names want."""

    title = "Sandbox: Microsoft 365"
    house: MicrosoftHouse

    @property
    def graph_url(self) -> str:
        return f"{self.url}/v1.0"

    @property
    def entra_url(self) -> str:
        return self.url

    def routes(self) -> Iterable[Route]:
        admission = Admission(self.house)
        messages, submission = Messages(self.house), Submission(self.house)
        uploads = Uploads(admission, lambda: self.url)
        own = "/v1.0/{who:me|users/[^/]+}"
        message = own + "/messages/{id}"
        for method, path, stage, scopes, handler in (
            ("GET", own, "profile", PROFILE, messages.profile),
            ("POST", own + "/sendMail", "sendMail", SEND, submission.send_mail),
            ("POST", own + "/messages", "messages.create", WRITE, messages.create),
            ("GET", own + "/messages", "messages.list", READ, messages.listed),
            ("GET", own + "/mailFolders/{folder}", "folder.get", READ, messages.folder),
            ("GET", own + "/mailFolders/{folder}/messages", "folder.messages", READ, messages.listed),
            ("GET", message, "messages.get", READ, messages.get),
            ("PATCH", message, "messages.patch", WRITE, messages.patch),
            ("DELETE", message, "messages.delete", WRITE, messages.delete),
            ("POST", message + "/send", "messages.send", SEND, submission.send),
            ("POST", message + "/{action:createReply|createReplyAll|createForward}", "answer", WRITE, messages.answer),
            ("GET", message + "/attachments", "attachments.list", READ, messages.attachments),
            ("POST", message + "/attachments", "attachments.add", WRITE, messages.attach),
            ("POST", message + "/attachments/createUploadSession", "upload.create", WRITE, uploads.begin),
            ("DELETE", message + "/attachments/{file}", "attachments.delete", WRITE, messages.detach),
            ("GET", message + "/attachments/{file}/$value", "attachments.value", READ, messages.value),
        ):
            yield Route(method, path, stage, admission.guarded(stage, scopes, handler))
        yield Route("PUT", "/upload/{session}", "upload.put", uploads.put)
        yield Route("GET", "/upload/{session}", "upload.get", uploads.state)
        yield from entra.routes(self)

    def user_of(self, request: web.Request) -> str:
        token = Admission(self.house).token_of(request)
        return token.user if token else ""

    def handovers(self) -> int:
        """Requests that could send a mail, whole or with a rule of their own."""
        return self.seen.get("messages.send", 0) + self.seen.get("sendMail", 0)

    def receive(self, address: str, sender: str, subject: str, text: str, **properties: Any) -> Item:
        """A message arrives in a mailbox: for tests that answer one."""
        mailbox = self.house.mailboxes[address.casefold()]
        told = {
            "subject": subject,
            "body": {"contentType": "html", "content": text},
            "from": person("", sender),
            "toRecipients": [person("", address)],
            "sentDateTime": stamp(self.house.now()),
            **properties,
        }
        item = Item("inbox", complete(told, sender), is_draft=False)
        mailbox.items.append(item)
        return item
