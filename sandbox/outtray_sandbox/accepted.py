"""What a sandbox server really took: an append-only file that outlives every process and judges us in tests and demo.

One JSON line per accepted mail, written in one `write` to a file opened with `O_APPEND` before the server answers, so
that a mail whose reply was lost stands here too. The file holds addresses, as a provider's own log would; it never
holds content or passwords.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """One mail that the server took. `accepted_at` is in seconds since the epoch, on the server's movable clock."""

    rfc_message_id: str
    user: str
    sender: str
    recipients: tuple[str, ...]
    sha256: str
    size: int
    accepted_at: float
    monotonic: float
    session: str
    answer: str
    """What the client was to be told: the reply's code, or `lost` where it was told nothing."""


class Ledger:
    """The file `path`; made if it is missing. Any number of processes may append and read."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, accepted: Accepted) -> None:
        os.write(self._file, (json.dumps(asdict(accepted)) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)

    def read(self) -> list[Accepted]:
        """Everything taken so far, in order. A last line that was cut short was never answered and is left out."""
        *lines, _unfinished = self.path.read_text("utf-8").split("\n")
        return [_parse(line) for line in lines]

    def twice(self) -> dict[str, list[Accepted]]:
        """Mails taken more than once, by Message-ID."""
        taken: dict[str, list[Accepted]] = defaultdict(list)
        for accepted in self.read():
            taken[accepted.rfc_message_id].append(accepted)
        return {message_id: several for message_id, several in taken.items() if len(several) > 1}

    def by_user(self) -> dict[str, list[Accepted]]:
        taken: dict[str, list[Accepted]] = defaultdict(list)
        for accepted in self.read():
            taken[accepted.user].append(accepted)
        return dict(taken)

    def count_in_any_24h(self, user: str, measure: Literal["messages", "recipients"] = "messages") -> int:
        """The most that `user` sent within any rolling 24 hours, wherever they begin."""
        return most_in_any_24h(self.by_user().get(user, ()), measure)


def most_in_any_24h(taken: Iterable[Accepted], measure: Literal["messages", "recipients"] = "messages") -> int:
    """The greatest sum over windows `[t, t + 24 h)`; the windows that begin at a mail are all that matter."""
    entries = sorted(taken, key=lambda accepted: accepted.accepted_at)
    weights = [1 if measure == "messages" else len(accepted.recipients) for accepted in entries]
    most = inside = first = 0
    for accepted, weight in zip(entries, weights, strict=True):
        inside += weight
        while accepted.accepted_at - entries[first].accepted_at >= _DAY:
            inside -= weights[first]
            first += 1
        most = max(most, inside)
    return most


def _parse(line: str) -> Accepted:
    fields = json.loads(line)
    return Accepted(**{**fields, "recipients": tuple(fields["recipients"])})
