"""The text of a mail whose app gave html alone: for those who read without html, and for filters, which expect one.

By inscriptis (Apache-2.0, kept at the University of Applied Sciences of the Grisons), which lays out as a browser
would: lists, tables, what is hidden left out. html2text is under the GPL, which our users could not take. Links stay
readable and complete: `our offer (https://example.com/offer)`.
"""

from __future__ import annotations

import re
from typing import Any

MOST = 256 * 1024
"""Characters of html that are laid out, 20 ms or so (measured 2026-11); more than that is read plainly."""

_LINK = re.compile(r"\[([^\[\]\n]{0,2000})\]\(((?:https?|mailto|tel):[^\s()]{1,2000})\)")
_BLANK = re.compile(r"(?:[ \t]*\n){3,}")


def text_of_html(html: str) -> str:
    """What a reader sees of an html body; "" if that is nothing but pictures."""
    laid_out = _laid_out(html) if len(html) <= MOST else None
    if laid_out is None:
        from outtray_schema.quoting import plain_text  # noqa: PLC0415 - it imports Message, which is made of this

        laid_out = plain_text(html)
    text = _LINK.sub(_link, laid_out)
    return _BLANK.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip("\n")


def _link(match: re.Match[str]) -> str:
    """A link as people write it. One that shows its own address, or nothing, is just the address."""
    shown, target = match[1].strip(), match[2]
    bare = target.removeprefix("mailto:").removeprefix("tel:")
    if not shown or shown.rstrip("/") in (target.rstrip("/"), bare, re.sub("^https?://", "", target).rstrip("/")):
        return bare
    return f"{shown} ({bare})"


def _laid_out(html: str) -> str | None:
    """None for what the library cannot read: it is html that anybody may have written."""
    from inscriptis import Inscriptis  # noqa: PLC0415 - 40 ms, for those who send html without a text
    from lxml.html import document_fromstring  # noqa: PLC0415

    try:
        return str(Inscriptis(document_fromstring(html.encode(), parser=_parser()), _config()).get_text())
    except Exception:
        return None


def _parser() -> Any:
    from lxml.html import HTMLParser  # noqa: PLC0415

    return HTMLParser(encoding="utf-8", no_network=True, huge_tree=False)


def _config() -> Any:
    from inscriptis.model.config import ParserConfig  # noqa: PLC0415

    return ParserConfig(display_links=True)
