"""The surroundings in which the rules are tried: each small enough to be explored whole, together every fault."""

from __future__ import annotations

from model.explore import Scenario
from model.states import FAR, NEW, Message

COMMITS = frozenset(("not written", "answer lost", "written late"))
PROCESS = frozenset(("crash", "freeze"))
PROVIDER = frozenset(("drop", "refuse"))
ALL = COMMITS | PROCESS | PROVIDER

ONE = Scenario(
    "one message, somebody looks and decides", faults=2, acts=1,
    fault_kinds=ALL, act_kinds=frozenset(("look", "resend", "decide")),
)  # fmt: skip
CANCELLED = Scenario(
    "one message, the app cancels, policy resend", faults=2, acts=1, resend=True,
    fault_kinds=ALL, act_kinds=frozenset(("cancel",)),
)  # fmt: skip
STOPPED = Scenario(
    "one message that expires, the app pauses, resumes, suppresses", (Message(expires=2),), faults=1, acts=2,
    fault_kinds=ALL, act_kinds=frozenset(("pause", "suppress", "cancel")),
)  # fmt: skip
QUOTA = Scenario(
    "two messages, quota one", (Message(), Message()), faults=1, quota=1, fault_kinds=ALL,
)  # fmt: skip
AGAIN = Scenario(
    "two messages, quota one, policy resend", (Message(), Message()), faults=1, quota=1, resend=True,
    fault_kinds=PROCESS | PROVIDER,
)  # fmt: skip
THIRD = Scenario(
    "two messages, quota two, policy resend", (Message(), Message()), faults=2, quota=2, resend=True,
    fault_kinds=frozenset(("drop", "freeze")),
)  # fmt: skip
KILLER = Scenario(
    "a message that kills its worker before another", (Message(), Message()), faults=0, quota=2,
    killers=frozenset((0,)),
)  # fmt: skip
HUNG = Scenario(
    "a turn that hangs", (Message(), Message()), faults=1, quota=2, fault_kinds=frozenset(("hang", "crash")),
)  # fmt: skip
WAKES = Scenario(
    "wakes are lost, one behind a far one", (Message(NEW, due=FAR), Message(NEW)), faults=2,
    fault_kinds=frozenset(("wake", "crash")),
)  # fmt: skip
LOST = Scenario("one message, one COMMIT gets no answer", faults=1, fault_kinds=COMMITS)
FROZEN = Scenario(
    "one message, one freeze, somebody looks and decides", faults=1, acts=1,
    fault_kinds=frozenset(("freeze",)), act_kinds=frozenset(("look",)),
)  # fmt: skip
HELD = Scenario(
    "one message that expires, the app pauses and resumes", (Message(expires=2),), faults=0, acts=2,
    act_kinds=frozenset(("pause",)),
)  # fmt: skip
RELAYED = Scenario(
    "one message, two workers fail one after the other, somebody looks and decides", faults=2, acts=1,
    fault_kinds=PROCESS, act_kinds=frozenset(("look",)),
)  # fmt: skip
JOINED = Scenario(
    "a second message comes in the turn of the first, quota one", (Message(), Message(NEW)), faults=1, quota=1,
    fault_kinds=frozenset(("written late",)),
)  # fmt: skip
EVERY = (ONE, CANCELLED, STOPPED, QUOTA, AGAIN, THIRD, KILLER, HUNG, WAKES)
SMALL = (LOST, FROZEN, HELD, RELAYED, JOINED)
