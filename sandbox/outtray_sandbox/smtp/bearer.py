"""What a client says first in OAUTHBEARER (RFC 7628 3.1), read strictly."""

from __future__ import annotations

import re

_SAID = re.compile(r"n,a=([^,\x01]*),\x01host=[^\x01]+\x01port=\d+\x01auth=Bearer ([!-~]+)\x01\x01")


def bearer_of(said: str) -> tuple[str, str] | None:
    """User name and token; None where it is something else."""
    found = _SAID.fullmatch(said)
    return (found[1].replace("=2C", ",").replace("=3D", "="), found[2]) if found else None
