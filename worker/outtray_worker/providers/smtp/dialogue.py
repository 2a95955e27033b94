"""One mail on a logged-in connection, phase by phase: MAIL, RCPT, DATA, the body, and at last the dot.

Everything but the dot may be repeated: a server that has not read `<CRLF>.<CRLF>` has accepted nothing (RFC 5321
4.1.1.4). The dot is the handover, a write of its own after the kernel has taken all that comes before it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence

from aiosmtplib import SMTPResponse

from outtray_schema.address import ascii_domain
from outtray_schema.outcome import Evidence, Failed, Held, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers import Mail, RefusedRecipient
from outtray_worker.providers.smtp.body import Body, DotStuffing
from outtray_worker.providers.smtp.link import Ended, Link
from outtray_worker.providers.smtp.wire import Garbled

_BLOCK = 64 * 1024
DOT = b".\r\n"


# ── the envelope ────────────────────────────────────────────────────────────────────────────────────────────────────


def path(address: str) -> bytes:
    """An address between its brackets, the domain in IDNA. Raises `ValueError` if it cannot stand there."""
    local, at, domain = address.rpartition("@")
    if not at or not local or re.search(r"[\x00-\x1f\x7f<>]", address) or (" " in local and local[0] != '"'):
        raise ValueError("the address cannot be written in an SMTP command")
    return b"%b@%b" % (local.encode(), (domain if domain.isascii() else ascii_domain(domain)).encode())


def envelope(link: Link, mail: Mail, eight_bit: bool) -> list[bytes]:
    """MAIL and one RCPT for each recipient. Raises `Ended` for what this server cannot carry."""
    try:
        sender, *recipients = [path(address) for address in (mail.sender, *mail.recipients)]
    except ValueError:
        raise failed("unwritable-address", "an address of this message cannot be written in SMTP") from None
    international = not all(each.isascii() for each in (sender, *recipients))
    if international and "smtputf8" not in link.extensions:
        raise failed("no-smtputf8", f"{link.server.place} takes no addresses beyond ASCII (it offers no SMTPUTF8)")
    if link.size_limit and mail.size > link.size_limit:
        raise failed("size", f"{mail.size} bytes; {link.server.place} takes {link.size_limit} at most")
    parameters = [b"SIZE=%d" % mail.size] if "size" in link.extensions else []
    parameters += [b"BODY=8BITMIME"] if eight_bit and "8bitmime" in link.extensions else []
    parameters += [b"SMTPUTF8"] if international else []
    return [b" ".join([b"MAIL FROM:<%b>" % sender, *parameters]), *(b"RCPT TO:<%b>" % each for each in recipients)]


def failed(rule: str, reason: str) -> Ended:
    return Ended(Failed(reason, evidence={"rule": rule}))


async def give_envelope(link: Link, commands: Sequence[bytes], partial: bool = False) -> tuple[RefusedRecipient, ...]:
    """All recipients or none: any refusal ends the attempt, and RSET comes before the link's next mail.

    `partial`: it goes on as long as the server takes one of them; returns whom it does not take.
    """
    link.phase = "mail"
    link.dirty = True
    if "pipelining" in link.extensions:
        replies = await ask_at_once(link, commands)
    else:
        replies = [await link.ask(commands[0])]
        if replies[0].code == 250:
            link.phase = "rcpt"
            replies += [await link.ask(command) for command in commands[1:]]
    link.phase = "mail"
    link.expect(replies[0], 250)
    link.phase = "rcpt"
    asked = len(commands) - 1
    if partial and (refused := refused_recipients(link, replies[1:], asked)):
        return refused
    expect_recipients(link, replies[1:], asked)
    return ()


async def ask_at_once(link: Link, commands: Sequence[bytes]) -> list[SMTPResponse]:
    """All commands in one write (RFC 2920), then their replies, fewer if the connection ends after a refusal.

    DATA is not among them: after 354 a refused recipient could only be answered by sending to the others.
    """
    link.heed()
    link.wire.write(b"\r\n".join(commands) + b"\r\n")
    replies: list[SMTPResponse] = []
    try:
        for _ in commands:
            replies.append(await link.wire.read_response(timeout=link.patience))
            link.phase = "rcpt"
    except (OSError, TimeoutError, Garbled):
        link.wire.drop()
        if not any(reply.code >= 400 for reply in replies):
            raise
    link.spoke_at = boottime()
    return replies


def expect_recipients(link: Link, replies: Sequence[SMTPResponse], asked: int) -> None:
    """Raises `Ended` with the weightiest refusal; its evidence names the refused by their position, from 0."""
    refusals = [(n, reply) for n, reply in enumerate(replies) if reply.code >= 400]
    if not refusals:
        if len(replies) != asked or any(reply.code not in (250, 251, 252) for reply in replies):
            raise Garbled("a reply to RCPT that is out of place")
        return
    refused = ",".join(str(n) for n, _ in refusals[:50])
    ends = [link.refused(reply, refused_recipients=refused) for _, reply in refusals]
    raise min(ends, key=lambda end: weight(end.outcome))


def refused_recipients(link: Link, replies: Sequence[SMTPResponse], asked: int) -> tuple[RefusedRecipient, ...]:
    """Whom the server does not take, if it takes one at least and minds nothing but them; else nobody.

    That there are too many holds for this one mail: the others get another (RFC 5321 4.5.3.1.10).
    """
    taken = sum(reply.code in (250, 251, 252) for reply in replies)
    refusals = [(n, link.refused(reply).outcome) for n, reply in enumerate(replies) if reply.code >= 400]
    if not taken or taken + len(refusals) != asked or not link.wire.alive:
        return ()
    if any(isinstance(outcome, (Held, Parked)) for _, outcome in refusals):
        return ()
    return tuple(_refused(n, outcome) for n, outcome in refusals if isinstance(outcome, (Retry, Failed)))


def _refused(n: int, outcome: Retry | Failed) -> RefusedRecipient:
    again = isinstance(outcome, Retry) or str(outcome.evidence.get("rule")).startswith("too-many-recipients")
    return RefusedRecipient(n, again, outcome.reason)


def weight(outcome: Outcome) -> int:
    """What concerns the whole mailbox comes first, then what no later try can mend."""
    return next((n for n, kind in enumerate((Held, Parked, Failed)) if isinstance(outcome, kind)), 3)


# ── the body ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def give_body(link: Link, body: Body, size: int) -> None:
    """DATA and every byte but the dot, in bounded memory; afterwards the kernel has them all."""
    link.phase = "data"
    link.expect(await link.ask(b"DATA"), 354)
    link.in_body = True
    stuffing, given = DotStuffing(), 0
    while (piece := await body.next()) is not None:
        if not piece.isascii() and "8bitmime" not in link.extensions:
            raise failed("no-8bitmime", f"{link.server.place} takes 7-bit mail only (it offers no 8BITMIME)")
        given += len(piece)
        await write(link, stuffing.feed(piece))
    await write(link, stuffing.end())
    if stuffing.bare_breaks:
        raise failed("bare-line-break", "the message holds a CR or LF alone, which SMTP forbids")
    if given != size:
        raise failed("size-changed", f"the message holds {given} bytes, not the {size} that were frozen")


async def write(link: Link, data: bytes) -> None:
    for block in blocks(data):
        link.heed()
        link.wire.write(block)
        try:
            async with asyncio.timeout(link.patience):
                await link.wire.flush()
        except (OSError, TimeoutError):
            link.heed()
            raise
        # A kernel that takes all at once would keep us from hearing the server, and the loop from its other work.
        await asyncio.sleep(0)
    link.heed()


def blocks(data: bytes) -> Iterator[bytes]:
    if len(data) <= _BLOCK:
        if data:
            yield data
        return
    for start in range(0, len(data), _BLOCK):
        yield data[start : start + _BLOCK]


# ── the dot ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def write_dot(link: Link, mail: Mail, answer_by: Deadline) -> Outcome:
    """The handover: from its first byte on only a complete and well-formed reply decides, and all else is `Unknown`."""
    link.phase = "dot"
    link.wire.write(DOT)
    try:
        reply = await link.wire.read_response(timeout=max(answer_by.left(), 0.0))
    except TimeoutError:
        return unknown("timeout", f"{link.server.place} did not answer the closing dot in time")
    except (OSError, Garbled) as error:
        said = "answered the closing dot with no proper SMTP" if isinstance(error, Garbled) else "closed the connection"
        return unknown("garbled" if isinstance(error, Garbled) else "closed", f"{link.server.place} {said}")
    link.spoke_at = boottime()
    return answer(link, mail, reply)


def unknown(rule: str, reason: str) -> Unknown:
    return Unknown(reason, evidence={"rule": rule, "phase": "dot"})


def answer(link: Link, mail: Mail, reply: SMTPResponse) -> Outcome:
    """What the reply to the dot means."""
    if 200 <= reply.code < 300:
        link.in_body = link.dirty = False
        return sent(link, mail, reply)
    if reply.code < 400:
        return unknown("garbled", f"{link.server.place} answered the closing dot with {reply.code}")
    # A refusal that was on its way before the dot would be followed by the answer to the dot.
    following = link.wire.next_reply()
    if following and following.code < 400:
        return unknown("contradiction", f"{link.server.place} gave two answers, {reply.code} and {following.code}")
    link.in_body = False
    return link.refused(reply).outcome


_QUEUE_IDS = (
    re.compile(r"queued as ([\w.-]{4,64})", re.IGNORECASE),
    re.compile(r"\bid=([\w.-]{4,64})", re.IGNORECASE),
    re.compile(r"OK\s+(\d{9,12} [\w.-]{8,80}) - gsmtp"),
    re.compile(r"^2\.0\.0 (\w{8,40}) Message accepted for delivery"),
)
_EXCHANGE_ID = re.compile(r"^(?:2\.\d\.\d )?OK <([^<>\s@]+@[^<>\s@]+)> \[Hostname=")


def sent(link: Link, mail: Mail, reply: SMTPResponse) -> Sent:
    """Taken, with what the 250 tells: a queue id (Postfix, Exim, Gmail, sendmail), or the id that Exchange gave it."""
    text = " ".join(reply.message.split())
    queue_id = next((found[1] for pattern in _QUEUE_IDS if (found := pattern.search(text))), None)
    ours, evidence = mail.rfc_message_id, link.evidence(reply)
    theirs = _EXCHANGE_ID.match(text)
    if theirs is None or theirs[1] == ours.strip("<>"):
        return Sent(queue_id, ours, evidence=evidence)
    both: Evidence = {**evidence, "our_message_id": ours, "their_message_id": f"<{theirs[1]}>"}
    return Sent(queue_id, f"<{theirs[1]}>" if ours.startswith("<") else theirs[1], evidence=both)
