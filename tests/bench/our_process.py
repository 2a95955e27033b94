"""One process of our arm: the product's own, with the bench's provider beside the real ones.

`python -m tests.bench.our_process worker` or `... dispatcher`; settings come from the environment, as always.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from tests.bench.provider import Connected, HttpProvider

from outtray_schema.settings import Settings, load_settings
from outtray_worker.providers import Provider
from outtray_worker.providers.gmail import GmailProvider
from outtray_worker.providers.microsoft import MicrosoftProvider
from outtray_worker.providers.smtp import SmtpProvider
from outtray_worker.providers.web import Web
from outtray_worker.serve import run_dispatcher, run_worker


def main() -> None:
    settings = load_settings()
    runs: dict[str, Callable[[], None]] = {
        "worker": lambda: run_worker(settings, providers(settings)),
        "dispatcher": lambda: run_dispatcher(settings),
    }
    runs[sys.argv[1]]()


def providers(settings: Settings) -> Mapping[str, Provider]:
    web = Web(settings)
    return {
        "bench": HttpProvider(),
        "smtp": SmtpProvider(settings),
        "gmail": Connected(GmailProvider(settings, web)),
        "microsoft": Connected(MicrosoftProvider(settings, web)),
    }


if __name__ == "__main__":
    main()
