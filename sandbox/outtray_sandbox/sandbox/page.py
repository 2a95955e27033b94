"""The two pages in HTML. Everything of a mail is escaped, and its own HTML stands in a frame that may do nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any
from urllib.parse import urlencode

from outtray_sandbox.sandbox.faults import FAULTS
from outtray_sandbox.sandbox.mails import Mail, newest_first

SERVERS = {"google": "Gmail", "microsoft": "Microsoft", "smtp": "SMTP"}
_NOTHING_FETCHED = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    'img-src data:">'
)
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif;
  --line: color-mix(in srgb, currentColor 16%, transparent); --soft: color-mix(in srgb, currentColor 6%, transparent) }
body { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
header { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: baseline; margin-bottom: 1rem }
h1 { font-size: 1.25rem; font-weight: 600; margin: 0 } h2 { font-size: 1rem; font-weight: 600; margin: 2rem 0 .5rem }
nav { display: flex; gap: 1rem; margin-left: auto } a { color: inherit } nav a { opacity: .65; text-decoration: none }
nav a[aria-current] { opacity: 1; font-weight: 600 }
form { margin: 0 } .filters { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: 1rem }
.filters a { border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .8rem; text-decoration: none }
.filters a[aria-current] { background: var(--soft); font-weight: 600 }
button { font: inherit; white-space: nowrap; padding: .15rem .7rem; border: 1px solid var(--line);
  border-radius: .4rem; cursor: pointer; background: var(--soft); color: inherit }
details { border-top: 1px solid var(--line) } details[open] { background: var(--soft) }
summary { display: grid; grid-template-columns: 4.5rem 5.5rem 14rem 1fr; gap: 1rem; padding: .5rem .6rem;
  cursor: pointer; list-style: none } summary::-webkit-details-marker { display: none }
summary > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
summary time, .quiet, dt { opacity: .6 } time, dd { font-variant-numeric: tabular-nums }
.mail { padding: 0 .6rem 1rem } dl { display: grid; grid-template-columns: 9rem 1fr; gap: 0 1rem; margin: .3rem 0 .8rem;
  font-size: .85rem } dd { margin: 0; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit } code { overflow-wrap: anywhere }
iframe { width: 100%; height: 18rem; border: 1px solid var(--line); border-radius: .4rem; background: #fff;
  margin-top: .8rem } table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid var(--line); padding: .4rem .6rem .4rem 0; vertical-align: top } td:last-child { width: 1% }
@media (max-width: 46rem) { summary { grid-template-columns: 4.5rem 1fr } dl { grid-template-columns: 1fr } }
"""


def mail_page(every: Sequence[Mail], shown: Iterable[Mail], chosen: Mapping[str, str]) -> str:
    """All that was sent, or what was chosen, the newest first."""
    mails = newest_first(shown)
    entries = "".join(map(_entry, mails)) or '<p class="quiet">Nothing here yet.</p>'
    return _page("Sent mail", "/", f"{_filters(every, chosen)}{entries}", _counted(len(mails)))


def faults_page(rules: Mapping[str, Sequence[Any]], url: str) -> str:
    """What is going wrong now, and what could."""
    rows = "".join(_in_force(server, rule) for server, held in rules.items() for rule in held)
    body = (
        f"<h2>In force</h2>{f'<table>{rows}</table>' if rows else '<p class=quiet>Nothing: all is well.</p>'}"
        f"<h2>Begin one</h2><p class=quiet>Each happens once, to whoever comes next.</p>"
        f"<table>{''.join(map(_button, FAULTS))}</table>"
        f"<h2>Any other</h2><p class=quiet>A rule of your own, as docs/sandbox.md describes them:</p>"
        f"<pre><code>curl {escape(url)}/control/google/add_rule "
        f'-d \'{{"stage": "drafts.send", "status": 503, "times": 2}}\'</code></pre>'
    )
    return _page("Faults", "/faults", body, f"{sum(map(len, rules.values()))} in force")


def _page(title: str, here: str, body: str, count: str) -> str:
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if path == here else ""}>{name}</a>'
        for path, name in (("/", "Sent mail"), ("/faults", "Faults"))
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title} – Outtray sandbox</title><style>{_STYLE}</style><header><h1>Outtray sandbox</h1>"
        f"<span class=quiet>{count}</span><nav>{links}</nav>"
        '<form method="post" action="/forget"><button title="No faults, and an empty page">Begin anew</button></form>'
        f"</header><main>{body}</main>"
    )


def _counted(number: int) -> str:
    return f"{number:,} mail{'' if number == 1 else 's'}"


def _filters(every: Sequence[Mail], chosen: Mapping[str, str]) -> str:
    """One link per server with its count, and whatever else was chosen, as a link that takes it back."""
    counts = Counter(mail.server for mail in every)
    others = {name: value for name, value in chosen.items() if name != "server"}
    links = [_filter("All", len(every), others, "server" not in chosen)]
    for server, name in SERVERS.items():
        links.append(_filter(name, counts[server], {**others, "server": server}, chosen.get("server") == server))
    for name, value in others.items():
        left = {key: each for key, each in chosen.items() if key != name}
        links.append(f'<a href="/?{escape(urlencode(left))}" aria-current="true">{escape(f"{name}: {value}")} ✕</a>')
    return f"<div class=filters>{''.join(links)}</div>"


def _filter(name: str, count: int, query: Mapping[str, str], current: bool) -> str:
    mark = ' aria-current="true"' if current else ""
    return f'<a href="/?{escape(urlencode(query))}"{mark}>{name} <span class=quiet>{count:,}</span></a>'


def _entry(mail: Mail) -> str:
    to = ", ".join(mail.recipients)
    link = f'<a href="/source/{mail.key}">{len(mail.raw):,} bytes</a>' if mail.raw else "too large to be kept"
    facts = {"from": mail.sender, "recipients": to, "logged in as": mail.user, **mail.ids}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    return (
        f'<details><summary><time title="{mail.at:%Y-%m-%d %H:%M:%S} UTC">{mail.at:%H:%M:%S}</time>'
        f"<span class=quiet>{SERVERS[mail.server]}</span><span>{escape(to)}</span>"
        f"<span>{escape(mail.subject or '(no subject)')}</span></summary>"
        f"<div class=mail><dl>{rows}<dt>source</dt><dd>{link}</dd></dl>{_body(mail)}</div></details>"
    )


def _body(mail: Mail) -> str:
    html = mail.html
    text = "" if mail.text == html else f"<pre>{escape(mail.text)}</pre>"
    if not html:
        return text
    return f'{text}<iframe sandbox title="as HTML" srcdoc="{escape(_NOTHING_FETCHED + html)}"></iframe>'


def _in_force(server: str, rule: Any) -> str:
    plain = {name: value for name, value in asdict(rule).items() if name not in ("id", "born") and value}
    return (
        f"<tr><td>{SERVERS[server]}</td><td><code>{escape(json.dumps(plain, default=str))}</code></td><td>"
        f'<form method="post" action="/faults"><button name="forget" value="{server}:{rule.id}">End it</button></form>'
        "</td></tr>"
    )


def _button(fault: Any) -> str:
    return (
        f"<tr><td><code>{escape(fault.name)}</code></td><td>{escape(fault.what)}</td><td>"
        f'<form method="post" action="/faults"><button name="fault" value="{escape(fault.name)}">Begin</button></form>'
        "</td></tr>"
    )
