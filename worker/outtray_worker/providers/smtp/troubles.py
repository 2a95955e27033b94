"""What goes wrong without a reply: the network, the name, TLS, silence. Before the closing dot nothing was accepted.

Up to the recipients it is the connection's matter and parks the mailbox. Once the body flows it may be the message
itself (a filter that cuts the line, a size that never gets through), so it spends an attempt: else one such message
would park its mailbox for ever.
"""

from __future__ import annotations

import errno
import socket
import ssl

from outtray_schema.outcome import Evidence, Outcome, Parked, Retry
from outtray_worker.providers.smtp.replies import Phase
from outtray_worker.providers.smtp.trust import PinDiffers
from outtray_worker.providers.smtp.wire import Garbled

_REFUSED = f"[Errno {errno.ECONNREFUSED}]"
_DOING: dict[Phase, str] = {
    "connect": "connecting",
    "ehlo": "greeting",
    "starttls": "starting TLS",
    "auth": "logging in",
    "mail": "naming the sender",
    "rcpt": "naming the recipients",
    "data": "giving the message",
    "dot": "handing over",
}


def trouble(phase: Phase, place: str, error: BaseException) -> tuple[str, str]:
    """A stable id and words for a person; `place` is host:port. Never the error's own text, which may quote a reply."""
    name, what = network_trouble(error) or _conversation(_DOING[phase], error)
    return name, f"{place}: {what}"


def network_trouble(error: BaseException) -> tuple[str, str] | None:
    """The network, the name or TLS, if it was one of those: a stable id and words for a person."""
    match error:
        case ssl.SSLError():
            return _tls_trouble(error)
        case socket.gaierror():
            return "dns", "the server's name is not found; check the host or the DNS"
        # asyncio joins the errors of several addresses into the text of one OSError (CPython 3.11).
        case OSError() if isinstance(error, ConnectionRefusedError) or _REFUSED in str(error):
            return "refused", "connection refused; nothing listens there"
    return None


def _tls_trouble(error: ssl.SSLError) -> tuple[str, str]:
    match error:
        case PinDiffers():
            return "tls-pin", (
                f"the server's certificate is not the pinned one; it shows {error.shown}. Make sure that the server's"
                " owner changed it, then pin that one"
            )
        case ssl.SSLCertVerificationError():
            return "tls-certificate", certificate_fault(error)
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "tls", "no TLS is spoken there; try tls: starttls, or the port of implicit TLS (465)"
    return "tls", f"TLS failed ({(error.reason or 'unknown').replace('_', ' ').lower()})"


def _conversation(doing: str, error: BaseException) -> tuple[str, str]:
    match error:
        case TimeoutError():
            return "timeout", f"no answer in time while {doing}"
        case Garbled():
            return "garbled", f"no proper SMTP while {doing}: {error}"
        case ConnectionError():
            return "closed", f"the connection was closed while {doing}"
    return "unreachable", f"cannot be reached ({error.__class__.__name__})"


def certificate_fault(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the certificate, and the cure. Codes: openssl x509_vfy.h (OpenSSL 3, 2026-11)."""
    unknown = "comes from an authority this machine does not know; name that authority's file as the mailbox's ca_file"
    cures = {
        10: "has expired; the server's owner must renew it",
        9: "is not valid yet; check this machine's clock",
        18: "is self-signed; pin it, or name it as the mailbox's ca_file, if you trust it",
        19: unknown,
        20: unknown,
        21: unknown,
        62: "is for another name; use the host name that the certificate is for",
        64: "is for another name; use the host name that the certificate is for",
    }
    cure = cures.get(error.verify_code, f"is not trusted ({error.verify_message})")
    return f"the server's certificate {cure}"


def interrupted(phase: Phase, place: str, error: BaseException) -> Outcome:
    """The outcome of an attempt that ended without a reply before the closing dot."""
    name, reason = trouble(phase, place, error)
    evidence: Evidence = {"rule": name, "phase": phase}
    return Retry(reason, evidence=evidence) if phase == "data" else Parked(reason, "connection", evidence=evidence)
