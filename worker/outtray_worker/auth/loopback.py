"""The page on this machine that takes a consent's answer: loopback only, one answer, for a bounded time (RFC 8252 7.3).

The browser waits for its page until the code has been redeemed, so what it shows is what really became of it.
"""

from __future__ import annotations

import html
import queue
import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PATIENCE = 60.0
"""Seconds for which the browser waits for its page."""


class Loopback:
    """Listens on 127.0.0.1 while it is entered. `state` guards it: no other page's answer is taken."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._answers: queue.Queue[Mapping[str, str]] = queue.Queue(1)
        self._done = threading.Event()
        self._page = (False, "Nothing was connected.")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def wait(self, seconds: float) -> Mapping[str, str]:
        """The answer's parameters. Raises `TimeoutError` if none comes."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError("nobody consented in time") from None

    def show(self, good: bool, text: str) -> None:
        """What the browser is to say."""
        self._page = (good, text)
        self._done.set()

    def take(self, parameters: Mapping[str, str]) -> tuple[int, bool, str]:
        """Status, whether it went well, and words, for one request of a browser."""
        if not secrets.compare_digest(parameters.get("state", "").encode(), self._state.encode()):
            return 400, False, "This page belongs to no login that is under way. Start again in the terminal."
        try:
            self._answers.put_nowait(parameters)
        except queue.Full:
            return 400, False, "This login was answered already."
        self._done.wait(PATIENCE)
        return 200, *self._page


def _handler(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            parameters = dict(parse_qsl(asked.query))
            if not {"code", "error"} & set(parameters):
                self._say(404, False, "There is nothing here.")  # a browser's own questions, like its favicon
                return
            self._say(*loopback.take(parameters))

        def _say(self, status: int, good: bool, text: str) -> None:
            data = page(good, text).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Silence: the request's line holds the code."""

    return Handler


def page(good: bool, text: str) -> str:
    """A page that says one thing."""
    title = "Connected" if good else "Not connected"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Outtray: {title}</title>
<style>body{{font:18px/1.5 system-ui,sans-serif;max-width:32em;margin:15vh auto;padding:0 1em;color:#222}}
h1{{font-size:1.4em;color:{"#176d35" if good else "#a11c1c"}}}</style>
<h1>{title}</h1><p>{html.escape(text)}</p><p>You can close this window.</p></html>"""
