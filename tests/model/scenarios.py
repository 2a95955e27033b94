"""The surroundings in which the rules are tried: each small enough to be explored whole, together every fault."""

from __future__ import annotations

from model.explore import Scenario
from model.states import FAR, NEW, Message

COMMITS = frozenset(("not written", "answer lost", "written late"))
PROCESS = frozenset(("crash", "freeze"))
PROVIDER = frozenset(("drop", "refuse"))
ALL = COMMITS | PROCESS | PROVIDER
UNLUCKY = frozenset(("freeze", "drop"))
TWO = (Message(), Message())

LOST = Scenario("one message, one COMMIT gets no answer", fault_kinds=COMMITS)
FROZEN = Scenario(
    "one message, one freeze, somebody looks and sends it again",
    acts=1, fault_kinds=frozenset(("freeze",)), act_kinds=frozenset(("look",)),
)  # fmt: skip
RELAYED = Scenario(
    "one message, two freezes, somebody looks and sends it again",
    faults=2, acts=1, fault_kinds=frozenset(("freeze",)), act_kinds=frozenset(("look",)),
)  # fmt: skip
DECIDED = Scenario(
    "one message, anything goes wrong once, somebody decides",
    acts=1, fault_kinds=ALL, act_kinds=frozenset(("look", "resend", "decide")),
)  # fmt: skip
CANCELLED = Scenario(
    "one message, sent again by policy, the app cancels",
    acts=1, resend=True, fault_kinds=ALL, act_kinds=frozenset(("cancel",)),
)  # fmt: skip
STOPPED = Scenario(
    "one message, the app pauses, resumes, suppresses, cancels",
    acts=2, fault_kinds=ALL, act_kinds=frozenset(("pause", "suppress", "cancel")),
)  # fmt: skip
EXPIRING = Scenario(
    "one message that expires, the app pauses and resumes", (Message(expires=2),),
    acts=2, fault_kinds=PROCESS, act_kinds=frozenset(("pause",)),
)  # fmt: skip
TAGGED = Scenario(
    "two messages, the app pauses and resumes a tag", TWO, faults=0, acts=2, act_kinds=frozenset(("tag",)),
)  # fmt: skip
QUOTA = Scenario("two messages, a quota of one", TWO, quota=1, fault_kinds=ALL)
JOINED = Scenario(
    "a second message comes in the turn of the first, a quota of one", (Message(), Message(NEW)),
    quota=1, fault_kinds=frozenset(("written late",)),
)  # fmt: skip
AGAIN = Scenario(
    "two messages, a quota of one, sent again by policy", TWO, quota=1, resend=True, fault_kinds=PROCESS | PROVIDER,
)  # fmt: skip
THIRD = Scenario(
    "two messages, a quota of two, sent again by policy", TWO, quota=2, resend=True, fault_kinds=frozenset(("freeze",)),
)  # fmt: skip
KILLER = Scenario("a message that kills its worker, before another", TWO, faults=0, killers=frozenset((0,)))
HUNG = Scenario("two messages, a turn hangs or its process dies", TWO, fault_kinds=frozenset(("hang", "crash")))
WAKES = Scenario(
    "two messages, one of them far, wakes are lost", (Message(NEW, due=FAR), Message(NEW)),
    faults=2, fault_kinds=frozenset(("wake", "crash")),
)  # fmt: skip

READABLE = Scenario("one message, what was sent can be read, anything goes wrong once", lookers=1, fault_kinds=ALL)
READABLE_TWO = Scenario("one message, two look among what was sent", lookers=2, fault_kinds=UNLUCKY)
READABLE_ACTS = Scenario(
    "one message, what was sent can be read, the app cancels, somebody decides",
    lookers=1, acts=1, fault_kinds=UNLUCKY, act_kinds=frozenset(("cancel", "decide")),
)  # fmt: skip
DRAFT = Scenario("one message, sent as a draft, anything goes wrong once", lookers=1, drafts=True, fault_kinds=ALL)
DRAFT_TWO = Scenario(
    "one message, sent as a draft, two look", lookers=2, drafts=True, fault_kinds=frozenset(("freeze",)),
)  # fmt: skip
DRAFT_ENDED = Scenario(
    "one message, sent as a draft, the app cancels", lookers=1, drafts=True,
    acts=1, fault_kinds=UNLUCKY, act_kinds=frozenset(("cancel",)),
)  # fmt: skip
DRAFT_ACTS = Scenario(
    "one message, sent as a draft, its person meddles with it, somebody decides", lookers=1, drafts=True,
    acts=1, fault_kinds=frozenset(("drop",)), act_kinds=frozenset(("decide", "resend", "meddle")),
)  # fmt: skip
BLIND = Scenario(
    "one message, nobody can look, sent again by policy", lookers=1, may_look=False, resend=True, fault_kinds=ALL,
)  # fmt: skip
HIDDEN = Scenario(
    "one message, sent as a draft, nobody can look any more, sent again by policy",
    lookers=1, drafts=True, may_look=False, resend=True, fault_kinds=frozenset(("drop",)),
)  # fmt: skip
COUNTED = Scenario(
    "one message, a quota of one, what was sent can be read", lookers=1, quota=1, fault_kinds=frozenset(("freeze",)),
)  # fmt: skip

TESTED = (
    LOST, FROZEN, DECIDED, CANCELLED, STOPPED, EXPIRING, TAGGED, QUOTA, JOINED, AGAIN, KILLER, HUNG, WAKES,
    READABLE, READABLE_TWO, READABLE_ACTS, DRAFT, DRAFT_TWO, DRAFT_ENDED, DRAFT_ACTS, BLIND, HIDDEN, COUNTED,
)  # fmt: skip
EVERY = (*TESTED, RELAYED, THIRD)
"""What `make model` explores: more than `make test`, where these two would only cost time."""
