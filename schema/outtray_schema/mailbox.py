"""A mailbox's server, validated: what is no secret of how it sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any, Literal

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
    is known of the host, else as is seen there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(993, ge=1, le=65535)
    tls: Literal["implicit", "starttls", "clear"] = "implicit"
    files_sent: bool | None = None

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        return host_name(host)


class SmtpServer(BaseModel):
    """Where and how a mailbox submits its mail.

    `tls`: `implicit` (port 465), `starttls` (587), or `clear`, which the worker allows to loopback addresses only and
    only if `OUTTRAY_SMTP_CLEAR_LOOPBACK` says so. `ca_file`: a CA in place of the system's; verification is never off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(587, ge=1, le=65535)
    tls: Literal["implicit", "starttls", "clear"] = "starttls"
    ca_file: str | None = None
    auth: Literal["auto", "plain", "login", "xoauth2"] = "auto"
    imap: ImapServer | None = None
    """Unset: nobody looks into the mailbox, and a handover without an answer stays unknown."""

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
        return host_name(host)


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
