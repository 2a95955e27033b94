"""The well-known hosts: data that fits, found by the address and never guessed."""

from __future__ import annotations

from datetime import date

import pytest

from outtray_schema.errors import InvalidMailbox
from outtray_schema.hosts import HOSTS, MailHost, by_address, by_name
from outtray_schema.mailbox import FILES_SENT, smtp_server
from outtray_schema.plans import PLANS

IMPLICIT = {465, 993}


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_each_is_a_server_that_can_be_stored_and_says_where_it_is_known_from(host: MailHost) -> None:
    server = smtp_server(**host.smtp, imap=host.imap)
    for each in (server, server.imap):
        assert each is not None and (each.tls == "implicit") == (each.port in IMPLICIT)
    assert host.plan in PLANS and "smtp" in PLANS[host.plan].providers
    assert "." in host.source and date(2026, 1, 1) <= host.read_on <= date(2026, 11, 21)


def test_no_domain_and_no_name_stands_twice() -> None:
    domains = [domain for host in HOSTS for domain in host.domains]
    assert len(set(domains)) == len(domains)
    assert len({host.name for host in HOSTS}) == len(HOSTS)
    assert all(domain == domain.lower() and domain.isascii() for domain in domains)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("ada@fastmail.com", "fastmail"),
        ("Ada@GMAIL.com", "gmail"),
        ("ada@contoso.onmicrosoft.com", "microsoft365"),
        ("ada@hotmail.co.uk", "outlook.com"),
        ("ada@gmx.de", "gmx.net"),
        ("ada@me.com", "icloud"),
    ],
)
def test_an_address_finds_its_host(address: str, name: str) -> None:
    assert by_address(address).name == name


@pytest.mark.parametrize(
    "address", ["ada@company.example", "ada@mail.gmail.com", "ada@gmail.com.example", "ada@notgmail.com"]
)
def test_what_is_not_known_is_not_guessed_and_says_what_was_tried(address: str) -> None:
    with pytest.raises(InvalidMailbox) as refused:
        by_address(address)
    (problem,) = refused.value.problems
    assert problem.field == "host"
    for said in (
        address.partition("@")[2],
        f"{len(HOSTS)} well-known hosts",
        "nothing was guessed",
        "--host",
        "--preset",
    ):
        assert said in problem.reason


def test_a_name_that_is_none_is_told_the_nearest() -> None:
    with pytest.raises(InvalidMailbox, match="preset: 'fastmial' is none; did you mean fastmail"):
        by_name("fastmial")


def test_gmail_is_known_to_file_its_copies_and_is_its_hosts_own_entry() -> None:
    imap = by_name("gmail").imap
    assert imap is not None and FILES_SENT[imap["host"]].files
