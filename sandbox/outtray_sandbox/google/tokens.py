"""Users, OAuth clients and what they hold: consents, refresh tokens, access tokens. No HTTP here."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from outtray_sandbox.google.errors import OAuthRefusal

OPENID = {"openid", "email", "profile", "https://www.googleapis.com/auth/userinfo.email"}
EXPIRED = "Token has been expired or revoked."
AUDIENCE = "https://oauth2.googleapis.com/token"
"""What a service account's assertion is addressed to: google-auth writes this whatever its token_uri is (2.62)."""


@dataclass
class Client:
    """An OAuth client; those of one `project` share what their users grant and revoke."""

    id: str
    secret: str
    project: str
    redirects: tuple[str, ...] = ()
    """Besides any loopback address, which an installed app may always use."""
    broken: str | None = None
    """An `error` that it gets at the token endpoint, e.g. `invalid_client`, `deleted_client`."""


@dataclass
class Code:
    client: str
    email: str
    scopes: tuple[str, ...]
    redirect: str
    challenge: str | None
    offline: bool
    nonce: str | None


@dataclass
class Refresh:
    client: str
    email: str
    scopes: tuple[str, ...]
    family: str


@dataclass
class Access:
    client: str
    email: str
    scopes: tuple[str, ...]
    until: float


@dataclass
class ServiceAccount:
    email: str
    public_key: str
    """PEM."""
    scopes: frozenset[str]
    """What an administrator delegated to it, domain-wide."""


@dataclass
class Tokens:
    """`rotation`: `none` (as Google does), `overlap` (a new one each time, the previous stays valid), `strict`."""

    now: Callable[[], float]
    lifetime: float = 3599.0
    rotation: str = "none"
    clients: dict[str, Client] = field(default_factory=dict)
    service_accounts: dict[str, ServiceAccount] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    """By address: the error that a refresh gets."""
    refreshes: Counter[str] = field(default_factory=Counter)
    """By address: refreshes that succeeded, also those whose answer was lost."""

    def __post_init__(self) -> None:
        self.codes: dict[str, Code] = {}
        self.refresh: dict[str, Refresh] = {}
        self.access: dict[str, Access] = {}
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    # ── granting ────────────────────────────────────────────────────────────────────────────────────────────────

    def new_access(self, client: str, email: str, scopes: Iterable[str], lifetime: float | None = None) -> str:
        token = f"ya29.{secrets.token_urlsafe(96)}"
        until = self.now() + (self.lifetime if lifetime is None else lifetime)
        self.access[token] = Access(client, email, tuple(scopes), until)
        return token

    def new_refresh(self, client: str, email: str, scopes: Iterable[str], family: str | None = None) -> str:
        token = f"1//{secrets.token_urlsafe(64)}"
        self.refresh[token] = Refresh(client, email, tuple(scopes), family or token)
        return token

    def holder(self, token: str) -> Access | None:
        """Whose access token it is, if it is valid now."""
        found = self.access.get(token)
        return found if found is not None and found.until > self.now() else None

    def client_of(self, client_id: str, secret: str | None) -> Client:
        client = self.clients.get(client_id)
        if client is None:
            raise OAuthRefusal("invalid_client", "The OAuth client was not found.", 401)
        if client.broken:
            raise OAuthRefusal(client.broken, "The OAuth client was deleted.", 401)
        if secret is not None and not secrets.compare_digest(secret.encode(), client.secret.encode()):
            raise OAuthRefusal("invalid_client", "Unauthorized", 401)
        return client

    # ── the three grants ────────────────────────────────────────────────────────────────────────────────────────

    def by_code(self, client: Client, code: str, redirect: str, verifier: str | None) -> dict[str, Any]:
        found = self.codes.pop(code, None)
        if found is None or found.client != client.id:
            raise OAuthRefusal("invalid_grant", "Malformed auth code.")
        if found.redirect != redirect:
            raise OAuthRefusal("redirect_uri_mismatch", "Bad Request")
        if found.challenge is not None and s256(verifier or "") != found.challenge:
            raise OAuthRefusal("invalid_grant", "Invalid code verifier." if verifier else "Missing code verifier.")
        answer = self.answer(client.id, found.email, found.scopes, found.nonce)
        if found.offline:
            answer["refresh_token"] = self.new_refresh(client.id, found.email, found.scopes)
        return answer

    def by_refresh(self, client: Client, token: str, scope: str | None) -> dict[str, Any]:
        found = self.refresh.get(token)
        if found is None or found.client != client.id:
            raise OAuthRefusal("invalid_grant", EXPIRED)
        if said := self.refused.get(found.email):
            raise OAuthRefusal(said["error"], said.get("description", "Bad Request"), 400, **_more(said))
        wanted = tuple(scope.split()) if scope else found.scopes
        if not set(wanted) <= set(found.scopes):
            raise OAuthRefusal("invalid_scope", "Some requested scopes were invalid.")
        self.refreshes[found.email] += 1
        answer = self.answer(client.id, found.email, wanted)
        if self.rotation != "none":
            answer["refresh_token"] = self.new_refresh(client.id, found.email, found.scopes, found.family)
            if self.rotation == "strict":
                del self.refresh[token]
        return answer

    def by_assertion(self, assertion: str, audience: str, users: Iterable[str]) -> dict[str, Any]:
        claims = self._verified(assertion)
        account = self.service_accounts[claims["iss"]]
        now = time.time()
        if claims.get("aud") not in (audience, AUDIENCE):
            raise OAuthRefusal("invalid_grant", "Invalid JWT: Failed audience check.")
        if not now - 3600 < float(claims.get("iat", 0)) < now + 300 or float(claims.get("exp", 0)) < now:
            message = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
            raise OAuthRefusal("invalid_grant", message)
        scopes = tuple(str(claims.get("scope", "")).split())
        if not scopes or not set(scopes) <= account.scopes:
            message = (
                "Client is unauthorized to retrieve access tokens using this method, or client not authorized for any "
                "of the scopes requested."
            )
            raise OAuthRefusal("unauthorized_client", message, 401)
        subject = str(claims.get("sub", account.email))
        if subject not in users and subject != account.email:
            raise OAuthRefusal("invalid_grant", "Invalid email or User ID")
        self.refreshes[subject] += 1
        return self.answer(account.email, subject, scopes)

    def _verified(self, assertion: str) -> dict[str, Any]:
        try:
            signed, _, signature = assertion.rpartition(".")
            header, claims = (json.loads(unpadded(part)) for part in signed.split("."))
            account = self.service_accounts[claims["iss"]]
            key = serialization.load_pem_public_key(account.public_key.encode())
            if header.get("alg") != "RS256" or not isinstance(key, rsa.RSAPublicKey):
                raise ValueError("not RS256")
            key.verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except (ValueError, KeyError, TypeError, InvalidSignature):
            raise OAuthRefusal("invalid_grant", "Invalid JWT Signature.") from None
        return dict(claims)

    def answer(self, client: str, email: str, scopes: tuple[str, ...], nonce: str | None = None) -> dict[str, Any]:
        said: dict[str, Any] = {
            "access_token": self.new_access(client, email, scopes),
            "expires_in": int(self.lifetime),
            "scope": " ".join(scopes),
            "token_type": "Bearer",
        }
        if "openid" in scopes:
            said["id_token"] = self.id_token(client, email, nonce)
        return said

    def id_token(self, client: str, email: str, nonce: str | None) -> str:
        """Signed by `key`, whose public half is at /oauth2/v3/certs."""
        now = int(time.time())
        claims = {
            "iss": "https://accounts.google.com",
            "aud": client,
            "azp": client,
            "sub": subject_of(email),
            "email": email,
            "email_verified": True,
            "iat": now,
            "exp": now + 3600,
            **({"nonce": nonce} if nonce else {}),
        }
        parts = ({"alg": "RS256", "kid": "sandbox", "typ": "JWT"}, claims)
        signed = ".".join(padless(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{padless(self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def certs(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "sandbox"}
        return {"keys": [{**key, "n": _number(numbers.n), "e": _number(numbers.e)}]}

    # ── taking away ─────────────────────────────────────────────────────────────────────────────────────────────

    def revoke(self, token: str) -> None:
        """All scopes of the project for that user, whichever of its tokens is named (docs "web-server", 2026-11)."""
        held = self.refresh.get(token) or self.access.get(token)
        if held is None:
            raise OAuthRefusal("invalid_token", "Token expired or revoked")
        self.forget(held.email, self._project(held.client))

    def forget(self, email: str, project: str | None = None) -> None:
        """Every token of a user, of one project or of all."""

        def stays(held: Access | Refresh) -> bool:
            return held.email != email or (project is not None and self._project(held.client) != project)

        self.refresh = {token: held for token, held in self.refresh.items() if stays(held)}
        self.access = {token: held for token, held in self.access.items() if stays(held)}

    def _project(self, client_id: str) -> str:
        client = self.clients.get(client_id)
        return client.project if client else client_id

    def withdraw(self, email: str, scope: str) -> None:
        """One permission less for a user, in every token of theirs."""
        every: list[Refresh | Access] = [*self.refresh.values(), *self.access.values()]
        for held in every:
            if held.email == email:
                held.scopes = tuple(each for each in held.scopes if each != scope)


def s256(verifier: str) -> str:
    """RFC 7636 4.2."""
    return padless(hashlib.sha256(verifier.encode()).digest())


def padless(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def subject_of(email: str) -> str:
    """A user's stable number."""
    return str(int.from_bytes(hashlib.sha256(email.encode()).digest()[:8], "big"))


def _number(value: int) -> str:
    return padless(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _more(said: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in said.items() if name not in ("error", "description")}
