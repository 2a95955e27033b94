"""The sandbox's people as mailboxes of an installation: by the client, and as commands to be typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from outtray_sandbox.sandbox.people import APPS, PEOPLE, Person
from outtray_sandbox.smtp import SmtpServer

if TYPE_CHECKING:
    from outtray import Outtray


def connect(outtray: Outtray, smtp: SmtpServer, addresses: Sequence[str]) -> None:
    """Add what is not there yet: the provider apps by their issuers' names, and the mailboxes of these people."""
    there = {app.name for app in outtray.provider_apps.list()}
    for app in APPS:
        if app.issuer not in there:
            outtray.provider_apps.add(app.issuer, app.issuer, client_id=app.client_id, secret=app.secret)
    known = {box.address for box in outtray.mailboxes.list()}
    for person in _named(addresses):
        if person.address not in known:
            _add(outtray, smtp, person)


def _named(addresses: Sequence[str]) -> Iterable[Person]:
    by_address = {each.address: each for each in PEOPLE}
    if unknown := [each for each in addresses if each not in by_address]:
        raise ValueError(f"nobody here has the address {', '.join(unknown)}; there are {', '.join(by_address)}")
    return [by_address[each] for each in addresses]


def _add(outtray: Outtray, smtp: SmtpServer, person: Person) -> None:
    if person.provider == "smtp":
        outtray.mailboxes.add_smtp(
            person.address, host=smtp.host, port=smtp.port, password=person.secret, name=person.name,
            ca_file=smtp.ca_file,
        )  # fmt: skip
        return
    add = outtray.mailboxes.add_google if person.provider == "gmail" else outtray.mailboxes.add_microsoft
    add(person.address, refresh_token=person.secret, scopes=person.scopes, provider_app=person.issuer, name=person.name)


def commands(smtp: SmtpServer) -> list[str]:
    """The same by the command line: each mailbox by a consent at the sandbox, which agrees at once."""
    apps = [
        f"echo {app.secret} | outtray provider-app add {app.issuer} --client-id {app.client_id} --from-stdin"
        for app in APPS
    ]
    return apps + [_command(each, smtp) for each in PEOPLE]


def _command(person: Person, smtp: SmtpServer) -> str:
    if person.provider == "smtp":
        return (
            f"echo {person.secret} | outtray mailbox add smtp {person.address} --host {smtp.host} --port {smtp.port} "
            f"--ca-file {smtp.ca_file} --password-stdin"
        )
    return f"outtray mailbox connect {person.issuer} --address {person.address} --scopes {person.grants}"


def in_python(person: Person) -> str:
    """How a consent that was given is handed in by the client."""
    return (
        f"outtray.mailboxes.add_{person.issuer}({person.address!r}, refresh_token={person.secret!r}, "
        f"scopes={list(person.scopes)!r}, provider_app={person.issuer!r})"
    )
