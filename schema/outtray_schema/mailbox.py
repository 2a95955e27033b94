"""A mailbox's server, validated: what is no secret of how it sends."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from outtray_schema.address import refuse_control_characters
from outtray_schema.errors import InvalidMailbox, Problem


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

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, host: str) -> str:
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
