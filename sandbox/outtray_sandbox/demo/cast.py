"""Who plays: six mailboxes on different plans, and the sandbox servers that they send through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Host:
    """A sandbox SMTP server. `latency` is in seconds, lowest and highest, from the dot to its answer."""

    name: str
    tls: Literal["starttls", "implicit"]
    latency: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Player:
    """A mailbox. `used_elsewhere` messages left from it elsewhere within the last day."""

    address: str
    name: str
    plan: str
    host: str
    used_elsewhere: int = 0


# The servers answer as slowly as real ones do, so that a person can follow and a kill finds a handover open.
HOSTS = (
    Host("google", "starttls", (0.15, 0.45)),
    Host("microsoft", "starttls", (0.2, 0.5)),
    Host("harbor", "implicit", (0.2, 0.6)),
    Host("atelier", "starttls", (0.4, 0.9)),
    Host("lab", "implicit", (0.3, 0.7)),
)

AT_ITS_LIMIT = Player("maya@gmail.example", "Maya Lindt", "gmail", "google", used_elsewhere=475)
BUSIEST = Player("lena@workspace.example", "Lena Brandt", "workspace", "google")
PACED = Player("omar@outlook.example", "Omar Haddad", "microsoft", "microsoft")
TROUBLED = Player("ivan@harbor.example", "Ivan Marsh", "smtp", "harbor")
REVOKED = Player("sofia@atelier.example", "Sofia Conti", "smtp", "atelier")
CUT_SHORT = Player("kenji@lab.example", "Kenji Sato", "smtp", "lab")

PLAYERS = (AT_ITS_LIMIT, BUSIEST, PACED, TROUBLED, REVOKED, CUT_SHORT)
