"""Debian's Postfix and Dovecot as ordinary processes, with configurations of their own in a temporary folder.

Postfix takes mail by SMTP with STARTTLS and a login that Dovecot checks, discards what it should deliver, and, where it
`files_sent`, delivers a copy of each mail into the sender's Sent as Gmail does (`sender_bcc_maps`). Dovecot shows that.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from outtray_sandbox.smtp import TlsFiles, make_certificates
from polling import eventually

USER = "ann@sender.example"
PASSWORD = "real-servers-Zx9"
GONE, BUSY = "gone@receiver.example", "busy@receiver.example"
"""Recipients that Postfix refuses: for good, and for now."""
SIZE_LIMIT = 3_000_000

NEEDED = ("/usr/sbin/postfix", "/usr/sbin/dovecot", "/usr/lib/dovecot/imap")

MASTER = """
127.0.0.1:{smtp} inet n - n - - smtpd
pickup   unix n - n 60 1 pickup
cleanup  unix n - n - 0 cleanup
qmgr     unix n - n 300 1 qmgr
rewrite  unix - - n - - trivial-rewrite
bounce   unix - - n - 0 bounce
defer    unix - - n - 0 bounce
trace    unix - - n - 0 bounce
error    unix - - n - - error
retry    unix - - n - - error
discard  unix - - n - - discard
virtual  unix - n n - - virtual
tlsmgr   unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
anvil    unix - - n - 1 anvil
postlog  unix-dgram n - n - 1 postlogd
"""

MAIN = """
compatibility_level = 3.6
myhostname = mx.sender.example
mydestination =
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks =
alias_maps =
alias_database =
default_transport = discard
virtual_transport = virtual
virtual_mailbox_domains = sender.example, sent.sender.example
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = texthash:{folder}/mailboxes
virtual_minimum_uid = {uid}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
{filing}
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{auth}
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_cert_file = {certificate}
smtpd_tls_key_file = {key}
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = check_recipient_access texthash:{folder}/refused, permit_sasl_authenticated, reject
message_size_limit = {size_limit}
"""

DOVECOT = """
protocols = imap
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
listen = 127.0.0.1
ssl = required
ssl_cert = <{certificate}
ssl_key = <{key}
auth_mechanisms = plain login
first_valid_uid = {uid}
first_valid_gid = {gid}
mail_location = maildir:{folder}/mail/%u
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/mail/%u
}}
namespace inbox {{
  inbox = yes
  mailbox Sent {{
    auto = subscribe
    special_use = \\Sent
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service auth {{
  inet_listener {{
    address = 127.0.0.1
    port = {auth}
  }}
}}
"""


@dataclass(frozen=True)
class MailServers:
    """Where they listen, and the folder that holds their logs and mail."""

    folder: Path
    smtp: int
    imap: int
    tls: TlsFiles

    def sent(self) -> list[Path]:
        """The copies that were filed."""
        return sorted((self.folder / "mail" / USER / ".Sent").glob("new/*"))

    def copies(self) -> list[Path]:
        """All of Sent: what Postfix filed, and what came by APPEND, which is marked as read."""
        return sorted((self.folder / "mail" / USER / ".Sent").glob("[cn]*/*"))

    def log(self) -> str:
        """What both servers wrote."""
        return "".join(
            f"\n{file.name}\n{file.read_text(errors='replace')}" for file in sorted(self.folder.glob("*.log"))
        )


def refuse_or_skip(reason: str) -> None:
    """On a developer's machine these tests may be left out; where everything is checked they may not."""
    if os.environ.get("OUTTRAY_CI"):
        pytest.fail(f"{reason}; run deploy/install-mail-servers")
    pytest.skip(f"{reason}; deploy/install-mail-servers installs them")


@contextlib.contextmanager
def mail_servers(files_sent: bool) -> Iterator[MailServers]:
    """Both, listening. Skips or fails where they cannot be had."""
    if os.geteuid() != 0:
        refuse_or_skip("Postfix's master needs root")
    if missing := [name for name in NEEDED if not Path(name).exists()]:
        refuse_or_skip(f"not installed: {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="outtray-mail-"))
    try:
        servers = _configured(folder, files_sent)
        with _running(servers):
            yield servers
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _configured(folder: Path, files_sent: bool) -> MailServers:
    folder.chmod(0o755)
    nobody, group = pwd.getpwnam("nobody"), grp.getgrnam("nogroup")
    tls = make_certificates(folder / "tls")
    smtp, imap, auth = _free_ports(3)
    for name in ("queue", "data", "mail", "postfix", "run", "state"):
        (folder / name).mkdir()
    os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
    os.chown(folder / "mail", nobody.pw_uid, group.gr_gid)
    filing = f"sender_bcc_maps = texthash:{folder}/filing" if files_sent else ""
    values = {
        "folder": folder, "smtp": smtp, "imap": imap, "auth": auth, "filing": filing, "uid": nobody.pw_uid,
        "gid": group.gr_gid, "certificate": tls.certificate, "key": tls.key, "size_limit": SIZE_LIMIT,
    }  # fmt: skip
    (folder / "postfix" / "main.cf").write_text(MAIN.format(**values))
    (folder / "postfix" / "master.cf").write_text(MASTER.format(**values).lstrip())
    (folder / "dovecot.conf").write_text(DOVECOT.format(**values))
    (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    (folder / "filing").write_text(f"{USER} ann@sent.sender.example\n")
    (folder / "refused").write_text(f"{GONE} 550 5.1.1 no such user\n{BUSY} 450 4.2.1 receiving too fast\n")
    # A trailing slash means maildir format, and Sent is a folder of Maildir++ (virtual(8), Postfix 3.7).
    (folder / "mailboxes").write_text(f"{USER} {USER}/\nann@sent.sender.example {USER}/.Sent/\n")
    return MailServers(folder, smtp, imap, tls)


@contextlib.contextmanager
def _running(servers: MailServers) -> Iterator[None]:
    folder = servers.folder
    config = ["-c", str(folder / "postfix")]
    subprocess.run(["/usr/sbin/postfix", *config, "check"], check=True, capture_output=True, timeout=60)
    commands = [
        ["/usr/sbin/dovecot", "-F", "-c", str(folder / "dovecot.conf")],
        ["/usr/lib/postfix/sbin/master", *config, "-d"],
    ]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MAIL_CONFIG": str(folder / "postfix")}
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        for command in commands
    ]
    try:
        for port in (servers.smtp, servers.imap):
            eventually(lambda port=port: _listens(port), 30)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
