"""Whom a mailbox's TLS trusts: the machine's authorities, one of its own beside them, or one pinned certificate.

Verification cannot be switched off. A pin stands in for it, for bridges and companies whose certificates no authority
signed: the server must show that certificate (or that key), and nothing is said to another.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class PinDiffers(ssl.SSLError):
    """The server showed another certificate than the pinned one. `shown` is its fingerprint, which is no secret."""

    def __init__(self, shown: str) -> None:
        super().__init__("the certificate is not the pinned one")
        self.shown = shown


class PinnedContext(ssl.SSLContext):
    """TLS to whoever shows the pinned certificate; no authority and no name is asked."""

    pin: str

    def check(self, shown: bytes | None) -> None:
        """Raises `PinDiffers`; `shown` is the certificate in DER."""
        if not shown or self.pin not in fingerprints(shown):
            raise PinDiffers(fingerprints(shown)[0] if shown else "none")

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As by the base class, which shakes hands before it returns a connected socket."""
        made = super().wrap_socket(*args, **options)
        try:
            self.check(made.getpeercert(binary_form=True))
        except PinDiffers:
            made.close()
            raise
        return made


@dataclass(frozen=True, slots=True)
class Trust:
    """What of a mailbox's `server` says whom to trust. `ca` is PEM; `ca_file` a path on this machine."""

    ca_file: str | None = None
    ca: str | None = field(default=None, repr=False)
    pin: str | None = None

    @classmethod
    def of(cls, server: Mapping[str, Any], at: Mapping[str, Any] | None = None) -> Trust:
        """Of the server itself, or `at` another one of the mailbox's: that has a pin of its own."""
        return cls(server.get("ca_file"), server.get("ca"), (at or server).get("pin"))

    def version(self) -> float:
        """When its file last changed. Raises `OSError`."""
        return Path(self.ca_file).stat().st_mtime if self.ca_file else 0.0


def build_context(trust: Trust) -> ssl.SSLContext:
    """TLS 1.2 or later, the server verified as `trust` has it.

    Loading the authorities takes over 10 ms: do it once, and off the event loop. Raises `OSError`.
    """
    if trust.pin:
        return _pinned(trust.pin)
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust.ca_file or trust.ca:
        context.load_verify_locations(cafile=trust.ca_file, cadata=trust.ca)
    return context


def _pinned(pin: str) -> PinnedContext:
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the pin is compared instead, before anything is said
    context.pin = pin
    return context


def fingerprints(der: bytes) -> tuple[str, str]:
    """A certificate's pins, as a mailbox stores them: of the whole, and of its public key (RFC 7469 2.4)."""
    key = x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"cert:{hashlib.sha256(der).hexdigest()}", f"key:{hashlib.sha256(key).hexdigest()}"
