"""A fake Google: the Gmail API and the consent, token and revocation endpoints, no kinder than the real ones.

    with GoogleServer(GoogleHouse(Ledger(folder / "accepted.jsonl"))) as google:
        google.house.add_client("client-1", "secret")
        google.house.add_user("ann@example.com")
        token = google.house.access("ann@example.com", "https://www.googleapis.com/auth/gmail.compose")
        settings: OUTTRAY_GMAIL_URL=google.url, OUTTRAY_GOOGLE_AUTH_URL=google.auth_url, …_TOKEN_URL=google.token_url,
                  …_REVOKE_URL=google.revoke_url

    google.add_rule(stage="drafts.send", drop="after", times=1)    as `outtray_sandbox.web` says
    google.do("limit_daily", email="ann@example.com", messages=2)  and every other method that `COMMANDS` names

Stages: the API's own names (`messages.send`, `drafts.create`, `drafts.send`, `messages.get`, …), `upload.messages.send`
and `upload.drafts.create` for multipart and for the beginning of a resumable upload, `upload.put.messages.send` and
`upload.put.drafts.create` for its pieces, `consent`, `token`, `revoke`, `userinfo`. What it does as Google does: the
Message-ID is replaced on sending, X- headers are kept, Bcc is stripped from what is delivered; draft ids are no message
ids, a sent draft is gone and its message gets a new id; the search lags (`search_lag`), the SENT label does not; quotas
roll over 24 hours and answer 429 with the time in the text; near them a 200 may have sent nothing (`lose_next`); scopes
are enforced by method; bodies are checked against the discovery document; JSON ends at 5 MB, uploads at 36,700,160
bytes, and resumable ones go on after a break.
"""

from outtray_sandbox.accepted import Ledger
from outtray_sandbox.google.house import COMMANDS, GoogleHouse
from outtray_sandbox.google.server import GoogleServer

__all__ = ["COMMANDS", "GoogleHouse", "GoogleServer", "Ledger"]
