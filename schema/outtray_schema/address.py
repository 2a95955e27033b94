"""Email addresses: how they are read, checked, and compared.

An address is kept with its domain in ASCII (IDNA) and lower case, and its local part as written. Two addresses are
the same person's when `normalise_address` says so.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import idna

from outtray_schema.errors import InvalidMessage, Problem

_NAMED = re.compile(r"\s*(?P<name>.*?)\s*<\s*(?P<email>[^<>]*?)\s*>\s*", re.DOTALL)
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-\u00a1-\U0010ffff]+")
_QUOTED = re.compile(r'"[ !#-\[\]-~]+"')
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HEAD_SEPARATORS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Address:
    """One mail address with an optional display name. Raises `InvalidMessage` with the cure.

    A domain outside ASCII becomes its IDNA form; a local part outside ASCII is kept (`needs_smtputf8`).
    """

    email: str
    name: str = ""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "email", checked_email(self.email))
            object.__setattr__(self, "name", checked_name(self.name))
        except ValueError as error:
            raise InvalidMessage(Problem("address", str(error))) from None

    @property
    def domain(self) -> str:
        """In ASCII and lower case."""
        return self.email.rpartition("@")[2]

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can take it: its local part is not ASCII."""
        return not self.email.isascii()


def parse_address(text: str) -> Address:
    """Read `ann@example.com` or `Ann Lee <ann@example.com>`. Raises `InvalidMessage` with the cure."""
    try:
        refuse_control_characters(text)
    except ValueError as error:
        raise InvalidMessage(Problem("address", str(error))) from None
    match = _NAMED.fullmatch(text)
    if match is None:
        return Address(text.strip())
    name = match["name"]
    if len(name) >= 2 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return Address(match["email"], name)


def checked_email(text: str) -> str:
    """The address in the form that is kept. Raises `ValueError` with the cure."""
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain:
        raise ValueError(f"{text!r} is no address; write it like ann@example.com or Ann Lee <ann@example.com>")
    email = f"{_checked_local(local)}@{ascii_domain(domain)}"
    if len(email.encode()) > 254:
        raise ValueError("an address has at most 254 bytes (RFC 5321 4.5.3.1.3)")
    return email


def checked_name(name: str) -> str:
    """A display name without surrounding space. Raises `ValueError` where it could break out of its header."""
    refuse_control_characters(name)
    if len(name) > MAX_NAME:
        raise ValueError(f"a display name has at most {MAX_NAME} characters")
    return " ".join(name.split())


def refuse_control_characters(text: str) -> None:
    """Refuse what could begin a line of its own in a header (CR, LF, NUL and their kind) or is no character at all.

    Raises `ValueError` naming the first one.
    """
    if (match := _HEAD_SEPARATORS.search(text)) is not None:
        raise ValueError(f"contains the control character U+{ord(match[0]):04X}; remove it")


def ascii_domain(domain: str) -> str:
    """A domain in ASCII and lower case. Raises `ValueError` with the cure."""
    if not domain.isascii():
        domain = _to_idna(domain)
    domain = domain.lower()
    labels = domain.split(".")
    if len(labels) < 2 or len(domain) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{domain!r} is no full domain name; write it like example.com")
    if labels[-1].isdigit():
        raise ValueError(f"{domain!r} is an IP address; mail needs a domain name")
    return domain


def normalise_address(address: str) -> str:
    """The form under which addresses are compared and indexed: the domain by IDNA, all in lower case.

    RFC 5321 2.4 lets a server tell `Ann@` from `ann@`, but none of the large ones does, and to take two spellings for
    one person errs on the safe side wherever it matters: suppression, duplicates, unique recipients. Dots and `+tags`
    are kept: what they mean differs between servers.
    """
    if address.isascii():
        return address.lower()
    local, _, domain = address.rpartition("@")
    return f"{unicodedata.normalize('NFC', local).lower()}@{ascii_domain(domain)}"


def is_external(recipient: Address, own: Address) -> bool:
    """Whether a recipient counts as external: its domain is not that of the mailbox's own address.

    The providers count by their tenant's accepted domains, which we cannot see; where a tenant has several, this
    counts too many rather than too few.
    """
    return recipient.domain != own.domain


def _checked_local(local: str) -> str:
    if len(local.encode("utf-8", "replace")) > 64:
        raise ValueError("the part before the @ has at most 64 bytes (RFC 5321 4.5.3.1.1)")
    if _is_dot_atom(local):
        return local
    if _QUOTED.fullmatch(local):
        return local[1:-1] if _is_dot_atom(local[1:-1]) else local
    raise ValueError(
        f"{local!r} cannot stand before the @ (RFC 5321 4.1.2); write one address each, several of them as a list"
    )


def _is_dot_atom(local: str) -> bool:
    return _ATOM.fullmatch(local) is not None and "" not in local.split(".") and local.isprintable()


def _to_idna(domain: str) -> str:
    """By IDNA 2008 with the mappings of UTS 46, as browsers and registries have it: straße.de is not strasse.de.

    The standard library knows IDNA 2003 only, which would turn the one into the other (RFC 5894 7.2).
    """
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise ValueError(f"{domain!r} is no domain name in any script (IDNA 2008); check its letters") from None
