"""The fake Google as a process: `python -m outtray_sandbox.google --ledger FILE [--setup FILE]`.

The setup is a JSON list of commands, `["add_user", {"email": "ann@example.com"}]`, so that secrets stand in no flag.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from outtray_sandbox.google import GoogleHouse, GoogleServer, Ledger
from outtray_sandbox.web import main


def make(asked: argparse.Namespace) -> GoogleServer:
    house = GoogleHouse(Ledger(asked.ledger))
    for command, arguments in json.loads(asked.setup.read_text("utf-8")) if asked.setup else []:
        if command not in house.commands:
            raise SystemExit(f"no such command: {command}")
        getattr(house, command)(**arguments)
    return GoogleServer(house, host=asked.host, port=asked.port)


if __name__ == "__main__":
    main(make, str(__doc__), ("--setup", {"type": Path, "help": "JSON list of commands to begin with"}))
