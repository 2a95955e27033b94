"""IMAPClient with bounds: on a socket that is connected already, silent in the logs, and never more than it can hold.

imaplib allocates a literal of any size that a server announces, before one byte of it has come, and IMAPClient writes
user names and server texts to its logs (sources of CPython 3.11 and IMAPClient 4.1, 2026-11).
"""

from __future__ import annotations

import imaplib
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence

from imapclient import IMAPClient

logging.getLogger("imapclient").setLevel(logging.CRITICAL + 1)

LITERAL = 256 * 1024
"""Bytes of one literal at most: we read header fields and folder names, nothing else."""
WHOLE = 32 * 1024 * 1024
"""Bytes that one connection may bring in all."""


class _Bounded(imaplib.IMAP4):
    """imaplib on a given socket."""

    def __init__(self, connected: socket.socket, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._connected = connected
        self._context = context
        self._taken = 0
        super().__init__(host, port)

    def _create_socket(self, timeout: float | None = None) -> socket.socket:
        if self._context is None:
            return self._connected
        return self._context.wrap_socket(self._connected, server_hostname=self.host)

    def read(self, size: int) -> bytes:
        if size > LITERAL:
            raise self.abort("a literal that is too large")
        return self._counted(super().read(size))

    def readline(self) -> bytes:
        try:
            return self._counted(super().readline())
        except self.abort:
            raise
        except self.error:  # imaplib's word for a line that is too long, as if the command were refused
            raise self.abort("a line that does not end") from None

    def _counted(self, data: bytes) -> bytes:
        self._taken += len(data)
        if self._taken > WHOLE:
            raise self.abort("more than anybody asked for")
        return data


class Client(IMAPClient):  # type: ignore[misc]
    """Messages go by their numbers: in a folder that is only read they stand between SEARCH and FETCH (RFC 3501 7.4.1).

    The constructor reads the greeting. Raises what imaplib raises.
    """

    def __init__(self, connected: socket.socket, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._connected = connected
        self._given = context
        super().__init__(host, port, use_uid=False, ssl=context is not None)
        self.normalise_times = False
        self._imap.debug = 0

    def _create_IMAP4(self) -> _Bounded:
        return _Bounded(self._connected, self.host, self.port, self._given)

    def _set_read_timeout(self) -> None:
        """The socket has its time-out already."""

    @property
    def greeted_as_known(self) -> bool:
        """PREAUTH: the server took us for somebody before TLS and login."""
        return str(self._imap.state) != "NONAUTH"

    @property
    def tls(self) -> str:
        """`TLSv1.3` and the like; "" in clear."""
        transport = self.socket()
        return transport.version() or "" if isinstance(transport, ssl.SSLSocket) else ""

    def offers(self) -> frozenset[str]:
        """The capabilities as they are now, in capitals. IMAPClient asks anew after STARTTLS and after the login."""
        return frozenset(each.decode("ascii", "replace").upper() for each in self.capabilities())

    def log_in_by(self, mechanism: str, answer: Callable[[bytes], bytes]) -> None:
        """AUTHENTICATE. IMAPClient's own makes a broken connection a refused login."""
        self._imap.authenticate(mechanism, answer)

    def log_in_plainly(self, user: str, password: str) -> None:
        """LOGIN. imaplib quotes the password only."""
        typ, data = self._imap.login(self._imap._quote(user), password)
        self._checkok("login", typ, data)

    def append_pieces(self, folder: str, size: int, pieces: Iterable[bytes]) -> None:
        """APPEND of `size` bytes as they come: imaplib's own holds a message whole, twice. It is marked as read.

        Raises what imaplib raises: `error` for a refusal, `abort` once nobody can tell.
        """
        imap = self._imap
        tag = imap._new_tag()
        imap.send(b"%b APPEND %b (\\Seen) {%d}\r\n" % (tag, self._normalise_folder(folder), size))
        while imap._get_response():
            if imap.tagged_commands[tag]:  # refused before the mail
                self._checkok("append", *imap._command_complete("APPEND", tag))
                return
        for piece in pieces:
            imap.send(piece)
        imap.send(b"\r\n")
        self._checkok("append", *imap._command_complete("APPEND", tag))

    def special_folders(self) -> Sequence[tuple[tuple[bytes, ...], bytes, str]]:
        """LIST (SPECIAL-USE), for servers that mark their folders only when they are asked to (RFC 6154 2)."""
        typ, data = self._imap.xatom("LIST", "(SPECIAL-USE)", '""', '"*"')
        self._checkok("list", typ, data)
        typ, data = self._imap.response("LIST")
        found: Sequence[tuple[tuple[bytes, ...], bytes, str]] = self._proc_folder_list(data)
        return found
