"""Well-known mail hosts as data: where their mailboxes submit mail, where it can be looked for, and how they log in.

Found by an address's domain or by the host's own name, never guessed: a domain that is not here has to be named.
Where a host takes both, TLS from the first byte on (465, 993) is preferred (RFC 8314 3.3).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from outtray_schema.address import ascii_domain
from outtray_schema.errors import InvalidMailbox, Problem

Tls = Literal["implicit", "starttls"]


@dataclass(frozen=True, slots=True)
class MailHost:
    """One host. `smtp` and `imap` are fields of `SmtpServer` and `ImapServer`."""

    name: str
    domains: tuple[str, ...]
    smtp: Mapping[str, Any]
    imap: Mapping[str, Any] | None
    source: str
    read_on: date
    plan: str = "smtp"
    note: str = ""
    """What its password must be, where it is not simply that of the account."""
    refuses_passwords: str = ""
    """Why no password logs in there, and what to do instead; "" where one does."""
    imap_by_local_part: bool = False
    """IMAP's user name is what stands before the @."""


def _implicit(host: str, port: int = 465) -> Mapping[str, Any]:
    return {"host": host, "port": port, "tls": "implicit"}


def _starttls(host: str, port: int = 587) -> Mapping[str, Any]:
    return {"host": host, "port": port, "tls": "starttls"}


def _read(host: str) -> Mapping[str, Any]:
    return _implicit(host, 993)


ISPDB = "Thunderbird's database of mail hosts (github.com/thunderbird/autoconfig, ispdb/{})"
READ = date(2026, 11, 21)
_APP_PASSWORD = "an app password, made in the account's settings for security; the account's own is refused"  # noqa: S105
_MICROSOFT = (
    "Microsoft takes no passwords there; connect it by consent: outtray mailbox connect microsoft, or --smtp with it"
)

HOSTS: tuple[MailHost, ...] = (
    MailHost(
        "gmail",
        ("gmail.com", "googlemail.com"),
        _implicit("smtp.gmail.com"),
        _read("imap.gmail.com"),
        ISPDB.format("googlemail.com.xml") + "; support.google.com/mail/answer/185833 (app passwords)",
        READ,
        plan="gmail",
        note=_APP_PASSWORD + ", and 2-step verification must be on",
    ),
    MailHost(
        "microsoft365",
        ("onmicrosoft.com",),
        _starttls("smtp.office365.com"),
        _read("outlook.office365.com"),
        "learn.microsoft.com, POP, IMAP and SMTP settings; techcommunity 27 Jan 2026 on passwords (off from Dec 2026)",
        READ,
        plan="microsoft",
        note="that of the mailbox, if its organisation allows SMTP AUTH by password; better connect it by consent",
    ),
    MailHost(
        "outlook.com",
        ("outlook.com", "hotmail.com", "live.com", "msn.com", "outlook.de", "outlook.fr", "outlook.es", "outlook.it",
         "hotmail.co.uk", "hotmail.fr", "hotmail.de", "hotmail.it", "hotmail.es", "live.co.uk", "live.fr", "live.de",
         "live.nl"),
        _starttls("smtp-mail.outlook.com"),
        _read("outlook.office365.com"),
        ISPDB.format("hotmail.com.xml") + "; support.microsoft.com, POP, IMAP and SMTP settings for Outlook.com",
        READ,
        plan="outlook",
        refuses_passwords=_MICROSOFT,
    ),
    MailHost(
        "fastmail",
        ("fastmail.com", "fastmail.fm", "messagingengine.com"),
        _implicit("smtp.fastmail.com"),
        _read("imap.fastmail.com"),
        ISPDB.format("messagingengine.com.xml") + "; www.fastmail.help, server names and ports",
        READ,
        note=_APP_PASSWORD,
    ),
    MailHost(
        "icloud",
        ("icloud.com", "me.com", "mac.com"),
        _starttls("smtp.mail.me.com"),
        _read("imap.mail.me.com"),
        "support.apple.com/102525, iCloud Mail server settings",
        READ,
        note="an app-specific password (account.apple.com)",
        imap_by_local_part=True,
    ),
    MailHost(
        "yahoo",
        ("yahoo.com", "yahoo.de", "yahoo.it", "yahoo.fr", "yahoo.es", "yahoo.se", "yahoo.co.in", "yahoo.co.uk",
         "yahoo.co.nz", "yahoo.com.au", "yahoo.com.ar", "yahoo.com.br", "yahoo.com.mx", "ymail.com", "myyahoo.com",
         "rocketmail.com"),
        _implicit("smtp.mail.yahoo.com"),
        _read("imap.mail.yahoo.com"),
        ISPDB.format("yahoo.com.xml"),
        READ,
        note=_APP_PASSWORD,
    ),
    MailHost(
        "aol",
        ("aol.com", "aim.com", "aol.de", "aol.it", "aol.fr", "aol.es", "aol.se", "aol.co.uk", "aol.com.au"),
        _implicit("smtp.aol.com"),
        _read("imap.aol.com"),
        ISPDB.format("aol.com.xml"),
        READ,
        note=_APP_PASSWORD,
    ),
    MailHost(
        "gmx.net",
        ("gmx.net", "gmx.de", "gmx.at", "gmx.ch"),
        _implicit("mail.gmx.net"),
        _read("imap.gmx.net"),
        "hilfe.gmx.net, IMAP und SMTP Serverdaten",
        READ,
        note="that of the account, once POP3 and IMAP are allowed there; with two-factor login an app password",
    ),
    MailHost(
        "gmx.com",
        ("gmx.com", "gmx.us", "gmx.co.uk", "gmx.es", "gmx.fr", "gmx.it"),
        _implicit("mail.gmx.com"),
        _read("imap.gmx.com"),
        ISPDB.format("gmx.com.xml"),
        READ,
        note="that of the account, once POP3 and IMAP are allowed in its settings",
    ),
    MailHost(
        "web.de",
        ("web.de",),
        _implicit("smtp.web.de"),
        _read("imap.web.de"),
        ISPDB.format("web.de.xml"),
        READ,
        note="that of the account, once POP3 and IMAP are allowed in its settings",
    ),
    MailHost(
        "t-online",
        ("t-online.de", "magenta.de"),
        _implicit("securesmtp.t-online.de"),
        _read("secureimap.t-online.de"),
        ISPDB.format("t-online.de.xml"),
        READ,
        note="the account's e-mail password, which is another than that of its web pages",
    ),
    MailHost(
        "posteo",
        ("posteo.de", "posteo.net", "posteo.org", "posteo.at", "posteo.ch", "posteo.eu"),
        _implicit("posteo.de"),
        _read("posteo.de"),
        ISPDB.format("posteo.de.xml"),
        READ,
    ),
    MailHost(
        "mailbox.org",
        ("mailbox.org",),
        _implicit("smtp.mailbox.org"),
        _read("imap.mailbox.org"),
        ISPDB.format("mailbox.org.xml"),
        READ,
        note="that of the account; with two-factor login an application password",
    ),
    MailHost(
        "zoho",
        ("zoho.com", "zohomail.com"),
        _implicit("smtp.zoho.com"),
        _read("imap.zoho.com"),
        ISPDB.format("zoho.com.xml"),
        READ,
        note="that of the account, once IMAP access is on in its settings; with two-factor login an app password",
    ),
    MailHost(
        "yandex",
        ("yandex.com", "yandex.ru", "yandex.by", "yandex.kz", "ya.ru"),
        _implicit("smtp.yandex.com"),
        _read("imap.yandex.com"),
        ISPDB.format("yandex.ru.xml"),
        READ,
        note=_APP_PASSWORD,
    ),
    MailHost(
        "protonbridge",
        (),
        _starttls("127.0.0.1", 1025),
        _starttls("127.0.0.1", 1143),
        "proton.me/support, Proton Mail Bridge: its default ports; its password and its certificate are its own",
        READ,
        note="the one that the bridge shows; it signs its certificate itself, so pin that (--pin)",
    ),
)  # fmt: skip
"""A company's own domain is found nowhere here: Google Workspace is `gmail`, Microsoft 365 is `microsoft365`."""

TENANTS = "onmicrosoft.com"
"""Each organisation at Microsoft has a domain of its own under this one."""

_BY_NAME = {host.name: host for host in HOSTS}
_BY_DOMAIN = {domain: host for host in HOSTS for domain in host.domains}


def by_name(name: str) -> MailHost:
    """The host of that name. Raises `InvalidMailbox`."""
    found = _BY_NAME.get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name.lower(), _BY_NAME, n=1)
        raise InvalidMailbox(
            Problem("preset", f"{name!r} is none; " + (f"did you mean {close[0]}? " if close else "") + _known())
        )
    return found


def by_address(email: str) -> MailHost:
    """The host that an address's domain belongs to. Raises `InvalidMailbox`, which says what was tried."""
    domain = ascii_domain(email.rpartition("@")[2])
    tenant = domain.partition(".")[2]
    found = _BY_DOMAIN.get(domain) or (_BY_DOMAIN[tenant] if tenant == TENANTS else None)
    if found is None:
        raise InvalidMailbox(
            Problem(
                "host",
                f"the server of {domain} is not known: it was looked for among the {len(_BY_DOMAIN)} domains of"
                f" {len(HOSTS)} well-known hosts, and nothing was guessed. Name the server (--host), or who keeps the"
                f" domain's mail (--preset): {_known()}",
            )
        )
    return found


def _known() -> str:
    return f"presets are {', '.join(_BY_NAME)}"
