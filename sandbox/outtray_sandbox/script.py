"""How a sandbox server is made to misbehave: the rules in force, whatever a rule of that server says."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar


class AnyRule(Protocol):
    """`times`: how often it still holds; None: until it is forgotten."""

    id: int
    times: int | None

    @property
    def is_over(self) -> bool: ...


R = TypeVar("R", bound=AnyRule)


class Script(ABC, Generic[R]):
    """The rules in force; the first that holds is used. Safe to change from any thread."""

    def __init__(self) -> None:
        self._rules: list[R] = []
        self._lock = threading.Lock()

    def add(self, rule: R) -> int:
        with self._lock:
            self._rules.append(rule)
        return rule.id

    def forget(self, rule_id: int | None = None) -> None:
        """Forget one rule, or all."""
        with self._lock:
            self._rules = [rule for rule in self._rules if rule_id is not None and rule.id != rule_id]

    @property
    def rules(self) -> tuple[R, ...]:
        """Those in force, in their order; one whose times or seconds are over is none."""
        with self._lock:
            return tuple(rule for rule in self._rules if not rule.is_over)

    def find(self, *where: str) -> R | None:
        """The rule to play now, counted as used; `where` is what its `holds` takes."""
        if not self._rules:
            return None
        with self._lock:
            for rule in self._rules:
                if self.holds(rule, *where):
                    rule.times = None if rule.times is None else rule.times - 1
                    return rule
        return None

    @abstractmethod
    def holds(self, rule: R, *where: str) -> bool:
        """Whether a rule is to be played now."""
