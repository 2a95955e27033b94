"""A mailbox's server, validated: what is no secret of how it sends."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from outtray_schema.address import refuse_control_characters
from outtray_schema.errors import InvalidMailbox, Problem


@dataclass(frozen=True, slots=True)
class Files:
    """Whether a provider files a copy of what it sends by SMTP."""

    files: bool
    source: str
    read_on: date


FILES_SENT: Mapping[str, Files] = MappingProxyType(
    {
        # Long-standing documentation of Gmail; to be seen once with a real account.
        "imap.gmail.com": Files(True, "Gmail's SMTP files in Sent Mail what it sends", date(2026, 11, 1)),
    }
)
"""By IMAP host, where it is always so. Exchange Online files copies only while the mailbox's switch
`MessageCopyForSMTPClientSubmissionEnabled` is on (the default; docs, 2026-11): there it is seen in the mailbox."""


class ImapServer(BaseModel):
    """Where a look for evidence reads the folder of sent mail.

    `tls`: `implicit` (port 993), `starttls` (143), or `clear`, to loopback addresses only, as with SMTP. `files_sent`:
    whether the provider itself files a copy of what it sends, so that a copy that is absent means something; unset: as
    is known of the host, else as is seen there. `sent_copy`: whether we put a copy there ourselves; `auto`, or
    unset: where the provider files none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(993, ge=1, le=65535)
    tls: Literal["implicit", "starttls", "clear"] = "implicit"
    files_sent: bool | None = None
    sent_copy: Literal["auto", "append", "never"] | None = None
    pin: str | None = None

    @field_validator("pin")
    @classmethod
    def _is_a_pin(cls, pin: str | None) -> str | None:
        return pin if pin is None else normal_pin(pin)

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        return host_name(host)


class SmtpServer(BaseModel):
    """Where and how a mailbox submits its mail.

    `tls`: `implicit` (port 465), `starttls` (587), or `clear`, which the worker allows to loopback addresses only and
    only if `OUTTRAY_SMTP_CLEAR_LOOPBACK` says so. `ca`: certificates of authorities (PEM) that are trusted beside the
    machine's own; `ca_file`: the same as a file of the worker's machine. `pin`: the one certificate, or key, that the
    server must show instead of any authority's word (`normal_pin`). Verification is never off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(587, ge=1, le=65535)
    tls: Literal["implicit", "starttls", "clear"] = "starttls"
    ca_file: str | None = None
    ca: str | None = None
    pin: str | None = None
    auth: Literal["auto", "plain", "login", "xoauth2", "oauthbearer"] = "auto"
    imap: ImapServer | None = None
    """Unset: nobody looks into the mailbox, and a handover without an answer stays unknown."""

    @field_validator("pin")
    @classmethod
    def _is_a_pin(cls, pin: str | None) -> str | None:
        return pin if pin is None else normal_pin(pin)

    @field_validator("ca")
    @classmethod
    def _are_authorities(cls, ca: str | None) -> str | None:
        return ca if ca is None else authorities(ca)

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        return host_name(host)


MOST_CA = 64 * 1024
"""Bytes of a mailbox's own authorities: some thirty certificates."""


def authorities(pem: str) -> str:
    """Certificates in PEM, and nothing beside them. Raises `ValueError` with the cure."""
    try:
        found = x509.load_pem_x509_certificates(pem.encode()) if len(pem) <= MOST_CA else []
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"holds no certificates in PEM (-----BEGIN CERTIFICATE-----), or more than {MOST_CA} bytes")
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in found)


def normal_pin(pin: str) -> str:
    """A pin as it is stored: `cert:` or `key:`, and a SHA-256 in hexadecimal. Raises `ValueError` with the cure.

    It is read as openssl writes a certificate's fingerprint (`AA:BB:…`), as `cert:` or `key:` before hexadecimal, or as
    curl writes a key's (`sha256//` and base64, its --pinnedpubkey).
    """
    kind, text = "cert", pin.strip()
    if text.startswith("sha256//"):
        with suppress(binascii.Error):
            kind, text = "key", base64.b64decode(text.removeprefix("sha256//"), validate=True).hex()
    elif text.startswith(("cert:", "key:")):
        kind, _, text = text.partition(":")
    text = text.rpartition("=")[2].replace(":", "").lower()
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise ValueError(
            "is no SHA-256 of a certificate or key; write it as openssl x509 -fingerprint -sha256 does (AA:BB:…), or"
            " sha256//… of the key, as curl takes it"
        )
    return f"{kind}:{text}"


def host_name(host: str) -> str:
    """A host in lower case. Raises `ValueError`."""
    refuse_control_characters(host)
    if any(mark in host for mark in " /@"):
        raise ValueError("is a host's name or address alone, like smtp.example.com")
    return host.lower()


def smtp_server(**fields: Any) -> SmtpServer:
    """A server from its fields. Raises `InvalidMailbox` with every field that is wrong."""
    try:
        return SmtpServer(**fields)
    except ValidationError as error:
        raise InvalidMailbox(
            [
                Problem(".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, "))
                for item in error.errors(include_url=False, include_input=False)
            ]
        ) from None
