"""Access tokens: one refresh per expiry and mailbox, whoever needs it and whatever crashes.

    tokens.py     what a provider asks: `access`, `renewed`; the lease, the wait, the refusals
    kept.py       access tokens in this process: when each is young, and when it is useless
    saving.py     a refresh on its way into the database, for as long as it takes
    watch.py      a refused client, until it works again
    store.py      the SQL of it: one statement each, with what it locks
    apps.py       OAuth clients ("provider apps"): read, refused, tried again, freed
    refresher.py  from stored credentials to a request, off the event loop, bounded in time and number
    google.py     google-auth and msal name and read the requests;
    microsoft.py  neither retries, caches a failure, or keeps a token
    wire.py       the bytes: one call is one request on the wire
    answers.py    what a token endpoint answers, as data
    consent.py    a person's consent: authorization code with PKCE, device code, revocation
    loopback.py   the page on this machine that takes the code

No token leaves this package but through `access` and `renewed`; no exception or log line of it holds one.
"""
