"""The sandbox's SMTP server as a process of its own: `python -m outtray_sandbox.smtp --ledger FILE --users FILE`.

It prints one JSON line once it listens ({"host", "port", "control", "ca_file"}) and ends on SIGTERM or SIGINT.
Passwords come by file or control socket, never by a flag: flags stand in the process list.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from outtray_sandbox.smtp import SmtpServer


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m outtray_sandbox.smtp", description=__doc__)
    parser.add_argument("--ledger", type=Path, required=True, help="file that every accepted mail is appended to")
    parser.add_argument("--users", type=Path, help='JSON file: {"user name": "password or token"}')
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--control", help="path of a Unix socket, or a loopback port, for commands")
    parser.add_argument("--tls", choices=("clear", "starttls", "implicit"), default="clear")
    parser.add_argument("--latency", type=float, nargs=2, default=(0.0, 0.0), metavar=("LOW", "HIGH"), help="seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the latencies")
    return parser


def main() -> None:
    asked = arguments().parse_args()
    users = json.loads(asked.users.read_text("utf-8")) if asked.users else {}
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with SmtpServer(
        asked.ledger,
        host=asked.host,
        port=asked.port,
        control=asked.control,
        users=users,
        tls=asked.tls,
        latency=tuple(asked.latency),
        seed=asked.seed,
    ) as server:
        where = {"host": server.host, "port": server.port, "control": server.control, "ca_file": server.ca_file}
        sys.stdout.write(json.dumps(where) + "\n")
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    main()
