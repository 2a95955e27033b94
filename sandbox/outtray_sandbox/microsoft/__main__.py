"""`python -m outtray_sandbox.microsoft --ledger FILE --user ADDRESS`: the server as a process of its own."""

from __future__ import annotations

import argparse

from outtray_sandbox.microsoft import Ledger, MicrosoftHouse, MicrosoftServer
from outtray_sandbox.web import WebServer, main


def make(options: argparse.Namespace) -> WebServer:
    house = MicrosoftHouse(Ledger(options.ledger))
    for address in options.user or ():
        house.add_user(address)
    for pair in options.client or ():
        client_id, _, secret = pair.partition(":")
        house.add_client(client_id, secret=secret or None)
    return MicrosoftServer(house, host=options.host, port=options.port)


if __name__ == "__main__":
    main(
        make,
        "A sandbox of Microsoft 365: Graph's mail and Entra's tokens.",
        ("--user", {"action": "append", "help": "a mailbox's address; any number of them"}),
        ("--client", {"action": "append", "help": "client id, and its secret behind a colon if it has one"}),
    )
