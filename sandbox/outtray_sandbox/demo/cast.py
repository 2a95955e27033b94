"""Who plays: eight mailboxes on different plans, and the sandbox servers that they send through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Host:
    """A sandbox server: by SMTP with one of two kinds of TLS, or an API with its token endpoints.

    `latency` is in seconds, lowest and highest, of each answer; at SMTP from the dot to its answer.
    """

    name: str
    speaks: Literal["starttls", "implicit", "gmail", "microsoft"]
    latency: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Player:
    """A mailbox. `used_elsewhere` messages left from it elsewhere within the last day."""

    address: str
    name: str
    plan: str
    host: str
    used_elsewhere: int = 0
    provider: Literal["smtp", "gmail", "microsoft"] = "smtp"

    @property
    def label(self) -> str:
        """Its plan, and whether it sends by its provider's API."""
        return self.plan if self.provider == "smtp" else f"{self.plan} API"

    @property
    def can_be_looked_into(self) -> bool:
        """Whether Outtray can find out by itself what became of an unanswered handover. SMTP cannot be asked."""
        return self.provider != "smtp"


# The servers answer as slowly as real ones do, so that a person can follow and a kill finds a handover open.
HOSTS = (
    Host("google", "starttls", (0.15, 0.45)),
    Host("microsoft", "starttls", (0.2, 0.5)),
    Host("harbor", "implicit", (0.2, 0.6)),
    Host("atelier", "starttls", (0.4, 0.9)),
    Host("lab", "implicit", (0.3, 0.7)),
    Host("gmail-api", "gmail", (0.1, 0.3)),
    Host("graph", "microsoft", (0.1, 0.3)),
)

AT_ITS_LIMIT = Player("maya@gmail.example", "Maya Lindt", "gmail", "google", used_elsewhere=475)
BUSIEST = Player("lena@workspace.example", "Lena Brandt", "workspace", "google")
PACED = Player("omar@outlook.example", "Omar Haddad", "microsoft", "microsoft")
TROUBLED = Player("ivan@harbor.example", "Ivan Marsh", "smtp", "harbor")
REVOKED = Player("sofia@atelier.example", "Sofia Conti", "smtp", "atelier")
CUT_SHORT = Player("kenji@lab.example", "Kenji Sato", "smtp", "lab")
BY_GMAIL = Player("nora@studio.example", "Nora Velez", "workspace", "gmail-api", provider="gmail")
BY_GRAPH = Player("felix@campus.example", "Felix Aoki", "microsoft", "graph", provider="microsoft")

PLAYERS = (AT_ITS_LIMIT, BUSIEST, PACED, TROUBLED, REVOKED, CUT_SHORT, BY_GMAIL, BY_GRAPH)
