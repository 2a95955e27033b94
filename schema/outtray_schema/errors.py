"""Every error that Outtray raises, and what a caller should do about it.

    OuttrayError
    ├── Refused             the request is wrong: names the field and the cure; nothing was stored
    │   ├── InvalidMessage      a field of a message
    │   ├── InvalidMailbox      a field of a mailbox
    │   └── IdempotencyConflict the key was used before with another request; names the fields that differ
    ├── NotFound            no such message, mailbox or app in this app's reach
    ├── WrongState          the thing exists, but cannot do that now; says what it is doing
    ├── Unavailable         PostgreSQL does not answer; nothing was stored; try again later
    ├── CannotOpen          stored data cannot be decrypted: damaged, or not where it belongs; restore it from a backup
    │   └── UnknownKey          its key is not in this process's ring: give it the key file with that key
    └── MailboxDisconnected the mailbox waits for its owner (`outtray mailbox reconnect`)

    SettingsError           a setting or key is missing or wrong: the process must not start

`SettingsError` stands outside the tree so that no loop that survives an `OuttrayError` can swallow it.
"""

from __future__ import annotations

from dataclasses import dataclass


class OuttrayError(Exception):
    """The root of what may go wrong while Outtray runs."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a request: `field` as the caller wrote it, `reason` with the cure in it."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class Refused(OuttrayError):
    """The request cannot be taken as it stands. Mend the fields that `problems` names; nothing was stored."""

    def __init__(self, problems: list[Problem] | Problem) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class InvalidMessage(Refused):
    """A message was refused at the door."""


class InvalidMailbox(Refused):
    """A mailbox was refused: an unknown plan, a limit that is no number, a server that cannot be reached so."""


class IdempotencyConflict(Refused):
    """This idempotency key already stands for another request. `message_id` is the first one's."""

    def __init__(self, problems: list[Problem], message_id: str) -> None:
        super().__init__(problems)
        self.message_id = message_id


class NotFound(OuttrayError):
    """No such thing in this app. Check the id; another app's things are invisible."""


class WrongState(OuttrayError):
    """The thing cannot do that in the state that it is in; the text says which state, and what to do instead."""


class Unavailable(OuttrayError):
    """PostgreSQL does not answer, so nothing was stored. Try again; the same idempotency key makes that safe."""


class CannotOpen(OuttrayError):
    """A sealed value does not open: it is damaged, or was put where it does not belong. Nothing of it is shown."""

    def __init__(self, ring: str, why: str) -> None:
        super().__init__(f"a value sealed by the ring {ring!r} cannot be opened: {why}")
        self.ring = ring


class UnknownKey(CannotOpen):
    """The key that sealed a value is not in this process's ring. Give it the key file that has it; nothing is lost."""

    def __init__(self, ring: str, key_id: str) -> None:
        super().__init__(ring, f"its key {key_id!r} is not in this process's key file")
        self.key_id = key_id


class MailboxDisconnected(OuttrayError):
    """The mailbox's credentials no longer work. Its owner must connect it again; its queue is kept."""


class SettingsError(Exception):
    """A setting is missing or wrong. Names the variable, shows an example, and names the page that explains it."""
