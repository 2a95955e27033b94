"""Enqueue many: any iterable, in bounded memory, by batches of one statement each.

Each batch is a transaction of its own unless `in_one_transaction` is asked for, and a batch is stored whole or not at
all. What was interrupted can be run again: with idempotency keys, what is stored already is answered with, not doubled.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from outtray import refusals
from outtray.door import Door
from outtray.enqueue import Accepted, Answer, enqueue_all_or_none, enqueue_batch
from outtray.plan import Plan
from outtray_schema.errors import InvalidMessage, Problem, Refused
from outtray_schema.message import Message, parse_message

MOST_MESSAGES = 500
MOST_BYTES = 8 * 1024 * 1024
"""Of text, html and attachments held in memory: a batch ends with the message that reaches it."""

MessageInput = Message | Mapping[str, Any] | InvalidMessage
"""A message, its fields, or why there is none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One message that was refused: its position in what was handed in, from 0, and why. Nothing of it was stored."""

    index: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, after each batch: totals so far, and the batch's accepted messages by their position."""

    accepted: int
    refused: int
    batch: Sequence[tuple[int, Accepted]]


@dataclass(slots=True)
class ManyResult:
    """What became of many messages. `created` of the `accepted` ones are new, the others stood there already."""

    accepted: int = 0
    created: int = 0
    refused: list[Refusal] = field(default_factory=list)


class ManyRefused(Refused):
    """Some messages were refused, and with `keep_going=False` that ends it. `result` tells what is stored nevertheless.

    That is: nothing with `in_one_transaction=True`, else the batches before the one with the refused messages.
    """

    def __init__(self, result: ManyResult) -> None:
        self.result = result
        super().__init__(
            [
                Problem(f"[{refusal.index}].{problem.field}", problem.reason)
                for refusal in result.refused
                for problem in refusal.problems
            ]
        )


OnProgress = Callable[[Progress], None]
Batch = list[tuple[int, Message | InvalidMessage]]


class _Batcher:
    """Collects parsed messages until they are a batch."""

    def __init__(self) -> None:
        self._batch: Batch = []
        self._index = 0
        self._bytes = 0
        self._files: set[int] = set()

    def add(self, item: MessageInput) -> Batch | None:
        """Answers with a batch once it is full."""
        message = _parsed(item)
        self._batch.append((self._index, message))
        self._index += 1
        self._bytes += self._bytes_held(message) if isinstance(message, Message) else 0
        return self.rest() if len(self._batch) >= MOST_MESSAGES or self._bytes >= MOST_BYTES else None

    def rest(self) -> Batch:
        batch, self._batch, self._bytes = self._batch, [], 0
        self._files.clear()
        return batch

    def _bytes_held(self, message: Message) -> int:
        """What it adds: one file that many messages of the batch carry is held once."""
        size = len(message.text or "") + len(message.html or "") + len(message.raw or "")
        for each in message.attachments:
            if each.content is not None and id(each.content) not in self._files:
                self._files.add(id(each.content))
                size += len(each.content)
        return size


def batches(items: Iterable[MessageInput]) -> Iterator[Batch]:
    """Parse and group what the caller hands in; holds one batch at a time."""
    batcher = _Batcher()
    for item in items:
        if (full := batcher.add(item)) is not None:
            yield full
    if rest := batcher.rest():
        yield rest


async def async_batches(items: Iterable[MessageInput] | AsyncIterable[MessageInput]) -> AsyncIterator[Batch]:
    """`batches`, of an async iterable too."""
    if not isinstance(items, AsyncIterable):
        for batch in batches(items):
            yield batch
        return
    batcher = _Batcher()
    async for item in items:
        if (full := batcher.add(item)) is not None:
            yield full
    if rest := batcher.rest():
        yield rest


def _parsed(item: MessageInput) -> Message | InvalidMessage:
    try:
        return item if isinstance(item, (Message, InvalidMessage)) else parse_message(item)
    except InvalidMessage as error:
        return refusals.RefusedInput(error, item) if isinstance(item, Mapping) else error


class Tally:
    """Adds up what became of each batch."""

    def __init__(self, keep_going: bool, on_progress: OnProgress | None) -> None:
        self.keep_going = keep_going
        self.result = ManyResult()
        self._on_progress = on_progress

    def take(self, answers: Sequence[tuple[int, Answer | None]]) -> None:
        """Add a batch. Raises `ManyRefused` if one was refused and that is to end it."""
        accepted = [(index, answer) for index, answer in answers if isinstance(answer, Accepted)]
        refused = [Refusal(index, tuple(each.problems)) for index, each in answers if isinstance(each, Refused)]
        self.result.accepted += len(accepted)
        self.result.created += sum(answer.created for _, answer in accepted)
        self.result.refused += refused
        if refused and not self.keep_going:
            raise ManyRefused(self.result)
        if self._on_progress is not None:
            self._on_progress(Progress(self.result.accepted, len(self.result.refused), accepted))

    def refuse(self, refused: Sequence[Refusal]) -> None:
        """Refuse all before anything is stored, if there is anything to refuse. Raises `ManyRefused`."""
        if refused:
            self.result.refused += refused
            raise ManyRefused(self.result)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Around the one transaction of all: when that is rolled back, nothing has been accepted."""
        try:
            yield
        except BaseException:
            self.result.accepted = self.result.created = 0
            raise


def enqueue_one_batch(
    door: Door, batch: Batch, keep_going: bool, remember: bool = True
) -> Plan[list[tuple[int, Answer | None]]]:
    """Accept one batch: the good ones of it, or all or none; answers by position."""
    good = [(index, message) for index, message in batch if isinstance(message, Message)]
    bad: list[tuple[int, Answer | None]] = [(index, error) for index, error in batch if isinstance(error, Refused)]
    messages = [message for _, message in good]
    answers: Sequence[Answer | None] = []
    if keep_going and good:
        answers = yield from enqueue_batch(door, messages, remember)
    elif good and not bad:
        answers = yield from enqueue_all_or_none(door, messages, remember)
    if remember:
        told = [*((None, error) for _, error in bad), *zip(messages, answers, strict=False)]
        yield from refusals.remember(door, (yield from door.app()), told)
    return sorted([*bad, *zip((index for index, _ in good), answers, strict=False)], key=lambda each: each[0])
