"""One process of our arm: the product's own, with the bench's provider beside SMTP.

`python -m tests.bench.our_process worker` or `... dispatcher`; settings come from the environment, as always.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.bench.provider import HttpProvider

from outtray_schema.settings import load_settings
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.serve import run_dispatcher, run_worker


def main() -> None:
    settings = load_settings()
    runs: dict[str, Callable[[], None]] = {
        "worker": lambda: run_worker(settings, {"bench": HttpProvider(), "smtp": SmtpProvider(settings)}),
        "dispatcher": lambda: run_dispatcher(settings),
    }
    runs[sys.argv[1]]()


if __name__ == "__main__":
    main()
