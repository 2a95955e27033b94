"""The real providers' routes: what a mail costs by each, and how many requests it takes.

Our arm runs the product's Gmail and Graph providers against the HTTP sink, which speaks just enough of both APIs and
answers at once. The baseline is the same task per message as everywhere here, posting its one `messages.send`; it looks
nothing up and keeps no draft, so a route that makes two or three requests is compared with one that makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench import naive, ours
from tests.bench.ledgers import Ledgers
from tests.bench.measure import Run, Spread, rate, watch_cpu
from tests.bench.naive import Setting
from tests.bench.sinks import GMAIL, GRAPH, MARK, Api, ApiSink
from tests.bench.stand import Stand

MAILBOXES = 100
PATIENCE = 60.0
"""Seconds for one run; several times what the slowest route takes on a busy machine."""

_GOOGLE = "https://www.googleapis.com/auth/gmail."
UNSUBSCRIBE = {"List-Unsubscribe": "<https://crm.example/u/1>"}
"""A header that Graph's JSON cannot carry: such a mail becomes a draft from MIME, and our key a request of its own."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to send, by what was granted. `promised`: the requests that each mail takes, counted by the sink."""

    name: str
    api: Api
    scopes: Sequence[str]
    promised: Mapping[str, int]
    headers: Mapping[str, str] = field(default_factory=dict)


BY_SEND = Route("Gmail by send", GMAIL, (f"{_GOOGLE}send",), {"messages.send": 1})
BY_DRAFT = Route("Gmail by draft", GMAIL, (f"{_GOOGLE}compose",), {"drafts.create": 1, "drafts.send": 1})
READ_BACK = Route(
    "Gmail by draft, Message-ID read back",
    GMAIL,
    (f"{_GOOGLE}compose", f"{_GOOGLE}metadata"),
    {"drafts.create": 1, "drafts.send": 1, "messages.get": 1},
)
SEND_MAIL = Route("Graph sendMail", GRAPH, ("Mail.Send",), {"sendMail": 1})
GRAPH_DRAFT = Route(
    "Graph by draft, final ids looked up",
    GRAPH,
    ("Mail.Send", "Mail.ReadWrite"),
    {"create": 1, "send": 1, "message": 1},
)
GRAPH_MIME = Route(
    "Graph by draft from MIME, the same",
    GRAPH,
    ("Mail.Send", "Mail.ReadWrite"),
    {"create": 1, "patch": 1, "send": 1, "message": 1},
    UNSUBSCRIBE,
)
ROUTES = (BY_SEND, BY_DRAFT, READ_BACK, SEND_MAIL, GRAPH_DRAFT, GRAPH_MIME)
FEW_ROUTES = (BY_SEND, BY_DRAFT, SEND_MAIL, GRAPH_DRAFT)


@dataclass(slots=True)
class Routed:
    """What became of one route. `requests` a message, by operation."""

    route: Route
    runs: list[Run] = field(default_factory=list)
    requests: dict[str, float] = field(default_factory=dict)

    @property
    def as_promised(self) -> bool:
        return self.requests == dict(self.route.promised)


@dataclass(slots=True)
class Routes:
    """All routes, and the baseline that ran between them."""

    setting: Setting
    routed: list[Routed]
    baseline: list[Run] = field(default_factory=list)

    def ratios(self, routed: Routed) -> Spread:
        """A route's rate over the baseline's of the same round."""
        return Spread.of([one.rate / other.rate for one, other in zip(routed.runs, self.baseline, strict=True)])


def measure_routes(
    stand: Stand, ledgers: Ledgers, routes: Sequence[Route], setting: Setting, ours: int, theirs: int, times: int
) -> Routes:
    """Round by round: the baseline, then each route once. `ours` and `theirs` are messages of one run."""
    found = Routes(setting, [Routed(route) for route in routes])
    for _ in range(times):
        found.baseline.append(_run_baseline(stand, ledgers, setting, theirs))
        for routed in found.routed:
            _run_route(stand, ledgers, routed, ours)
    return found


def _run_route(stand: Stand, ledgers: Ledgers, routed: Routed, number: int) -> None:
    route = routed.route
    stand.empty()
    with ApiSink(stand, ledgers.new("route"), route.api, route.scopes) as sink:
        boxes = ours.add_mailboxes(stand, sink.boxes("bench", MAILBOXES))
        ours.enqueue(stand, "bench", ours.letters(boxes, number, route.headers))
        stand.settle()
        ours.start(stand, ours.WORKERS, **sink.environment)

        def alive() -> None:
            stand.alive("worker")
            stand.alive("dispatcher")

        cpu = watch_cpu(stand, sink.count, number, alive, PATIENCE)
        stand.stop("dispatcher", "worker")
        ledgers.compare(route.name, sink.ledger(), ours.sent(stand, sink.key))
        routed.runs.append(Run(rate(stand, "outtray.message", "handover_end"), cpu, 0.0))
        routed.requests = {name: times / number for name, times in sink.requests().items()}


def _run_baseline(stand: Stand, ledgers: Ledgers, setting: Setting, number: int) -> Run:
    stand.empty()
    with ApiSink(stand, ledgers.new("naive"), GMAIL, ()) as sink:
        boxes = ours.add_mailboxes(stand, sink.boxes("bench", MAILBOXES))
        naive.load(stand, boxes, number, sink.letter, MARK)
        stand.settle()
        naive.start(stand, setting, **sink.baseline)
        cpu = watch_cpu(stand, sink.count, number, lambda: stand.alive("naive"), PATIENCE)
        naive.wait_sent(stand, number, within=30)
        stand.stop("naive")
        ledgers.compare("baseline, one messages.send", sink.ledger(), naive.sent(stand, sink.their_key))
        return Run(rate(stand, "baseline.message", "sent_at"), cpu, 0.0)
