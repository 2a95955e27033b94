"""Postfix and Dovecot, started once for all tests: filing a copy of each mail into Sent, and not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mail.mail_servers import MailServers, mail_servers


@pytest.fixture(scope="session")
def filing() -> Iterator[MailServers]:
    with mail_servers(files_sent=True) as servers:
        yield servers


@pytest.fixture(scope="session")
def not_filing() -> Iterator[MailServers]:
    with mail_servers(files_sent=False) as servers:
        yield servers
