"""Would a mail leave from this mailbox, and from which addresses? Asked without sending anything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outtray_schema.outcome import Held, Outcome
from outtray_worker.providers.microsoft.calls import Ask, Ended, unanswered
from outtray_worker.providers.microsoft.letter import Json
from outtray_worker.providers.web import NoAnswer

if TYPE_CHECKING:
    from outtray_worker.providers.microsoft.session import MicrosoftSession

_SELF = "?$select=mail,userPrincipalName,proxyAddresses"


@dataclass(frozen=True, slots=True)
class MicrosoftCheck:
    """What Graph showed: for `outtray mailbox test`. Nothing was sent."""

    place: str
    route: str
    """How mail leaves: `draft`, `sendMail`."""
    can_look: bool
    """Whether it can be seen afterwards what was sent."""
    looked: bool
    """Whether the mailbox itself answered; else only a token was had."""
    addresses: tuple[str, ...] = field(repr=False)


async def check(session: MicrosoftSession) -> MicrosoftCheck | Outcome:
    if not session.grant.send:
        return Held("the consent lacks Mail.Send: connect the mailbox again", evidence={"rule": "no-scope"})
    try:
        async with asyncio.timeout(session.limit):
            return await _check(session)
    except Ended as end:
        return end.outcome
    except NoAnswer as none:
        return unanswered(none, loads=False)
    except TimeoutError:
        return unanswered(NoAnswer("timeout", "no answer in time", False), loads=False)


async def _check(session: MicrosoftSession) -> MicrosoftCheck:
    await session.calls.sign_in()
    if session.grant.read:
        said = await session.calls.ask(Ask("GET", "/mailFolders/sentitems?$select=id", "folder"))
        session.calls.expect(said, 200)
    return MicrosoftCheck(
        place=session.calls.place,
        route="draft" if session.grant.drafts else "sendMail",
        can_look=session.grant.read,
        looked=session.grant.read,
        addresses=tuple(await _addresses(session)),
    )


async def identities(session: MicrosoftSession) -> list[str] | Outcome:
    """The mailbox's addresses, its own one first: the only one where the profile cannot be read."""
    try:
        async with asyncio.timeout(session.limit):
            return await _addresses(session)
    except Ended as end:
        return end.outcome
    except NoAnswer as none:
        return unanswered(none, loads=False)
    except TimeoutError:
        return unanswered(NoAnswer("timeout", "no answer in time", False), loads=False)


async def _addresses(session: MicrosoftSession) -> list[str]:
    own = session.account.address
    if not session.grant.profile:
        return [own]
    told = session.calls.expect(await session.calls.ask(Ask("GET", _SELF, "profile")), 200)
    found = [own, *_aliases(told)]
    return list({each.casefold(): each for each in reversed(found)}.values())[::-1]


def _aliases(told: Json) -> list[str]:
    """`proxyAddresses` are `SMTP:` (the main one) and `smtp:` (learn.microsoft.com/graph/api/resources/user, 2026-11).

    `otherMails` are addresses of the person elsewhere: Exchange refuses to send as those.
    """
    proxies = [str(each) for each in told.get("proxyAddresses") or ()]
    named = [each.partition(":")[2] for each in proxies if each.lower().startswith("smtp:")]
    return [each for each in (str(told.get("mail") or ""), *named) if "@" in each]
