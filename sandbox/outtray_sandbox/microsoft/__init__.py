"""A real-feeling Microsoft 365 for tests and demo: Graph's mail, and the Entra endpoints that issue its tokens.

    house = MicrosoftHouse(Ledger(folder / "accepted.jsonl"))
    house.add_user("ann@contoso.example", aliases=["sales@contoso.example"])
    with MicrosoftServer(house) as server:
        settings: graph_url=server.graph_url, entra_url=server.entra_url
        token = house.issue("ann@contoso.example")                 or by the token endpoint, with a client
        server.add_rule(stage="messages.send", drop="after", times=1)   sends the next mail, but the answer is lost
        house.set_unkind("sent_copy_after", 30)                    the copy shows up after `shift_clock(30)`

Stages: profile, sendMail, messages.create/list/get/patch/delete/send, folder.get, folder.messages, answer (createReply
and its like), attachments.list/add/delete/value, upload.create/put/get, authorize, devicecode, token, openid, keys.
`python -m outtray_sandbox.microsoft` is the same as a process. It is no kinder than the real one: see `house`.
"""

from outtray_sandbox.microsoft.house import EVERY_SCOPE, Client, Limits, MicrosoftHouse
from outtray_sandbox.microsoft.server import MicrosoftServer
from outtray_sandbox.web import Accepted, Ledger, Rule

__all__ = ["EVERY_SCOPE", "Accepted", "Client", "Ledger", "Limits", "MicrosoftHouse", "MicrosoftServer", "Rule"]
