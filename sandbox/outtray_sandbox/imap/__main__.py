"""The sandbox's SMTP and IMAP servers as one process: `python -m outtray_sandbox.imap --ledger FILE --users FILE`.

It prints one JSON line once both listen: that of `python -m outtray_sandbox.smtp`, and `imap` with port and control.
"""

from __future__ import annotations

import json
import signal
import sys
import threading

from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import SmtpServer
from outtray_sandbox.smtp.__main__ import arguments


def main() -> None:
    parser = arguments()
    parser.add_argument("--imap-port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--imap-control", help="as --control")
    parser.add_argument("--files-sent", action="store_true", help="file a copy of what is taken in Sent")
    parser.add_argument("--lag", type=float, default=0.0, help="seconds until a copy is there")
    asked = parser.parse_args()
    users = json.loads(asked.users.read_text("utf-8")) if asked.users else {}
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    latency = tuple(asked.latency)
    with (
        SmtpServer(
            asked.ledger, host=asked.host, port=asked.port, control=asked.control, users=users, tls=asked.tls,
            latency=latency, seed=asked.seed,
        ) as smtp,
        ImapServer(
            smtp, port=asked.imap_port, control=asked.imap_control, files_sent=asked.files_sent, lag=asked.lag
        ) as imap,
    ):  # fmt: skip
        where = {"host": smtp.host, "port": smtp.port, "control": smtp.control, "ca_file": smtp.ca_file}
        sys.stdout.write(json.dumps({**where, "imap": {"port": imap.port, "control": imap.control}}) + "\n")
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    main()
