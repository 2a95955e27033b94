"""What the sandbox's HTTP servers share: a server on a thread of its own, faults at every step, a page of sent mail.

    class GoogleHouse(House): …                          what it knows; its `commands` are what tests may tell it
    class GoogleServer(WebServer):
        def routes(self) -> Iterable[Route]:              each with a stage: the name under which rules and counts go
            yield Route("POST", "/gmail/v1/users/{user}/drafts/send", "drafts.send", self._send_draft)

    with GoogleServer(GoogleHouse(Ledger(folder / "accepted.jsonl"))) as server:
        server.url                                        http://127.0.0.1:port
        server.add_rule(stage="drafts.send", drop="after", times=1)     takes it, and closes without an answer
        server.seen["drafts.send"]                        whole requests that came, those of a rule included

Rules are in `faults.Rule`. Over HTTP: `GET /` is the page of sent mail, `POST /_sandbox/rules` adds a rule (JSON),
`DELETE /_sandbox/rules` forgets them all, `POST /_sandbox/do/{command}` commands (JSON arguments), and a request with
the header `X-Sandbox-Fault` (a rule as JSON, its stage may be left out) suffers that rule alone. A mail can bring its
own fault in a header of that name: a handler that has parsed one ends with
`return await self.suffer(self.house.fault_of_mail(stage, headers), request, work)`.
"""

from outtray_sandbox.accepted import Accepted, Ledger
from outtray_sandbox.web.faults import Rule, Script
from outtray_sandbox.web.house import House, SentMail
from outtray_sandbox.web.serve import Route, WebServer, main

__all__ = ["Accepted", "House", "Ledger", "Route", "Rule", "Script", "SentMail", "WebServer", "main"]
