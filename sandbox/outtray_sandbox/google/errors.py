"""Refusals in Google's own shapes, as its guides and live answers show them (2026-11)."""

from __future__ import annotations

from typing import Any

from aiohttp import web

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class Refusal(Exception):
    """A handler's way out; the server answers with `response`."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(str(status))
        self.status, self.body, self.headers = status, body, headers or {}

    def response(self) -> web.Response:
        return web.json_response(self.body, status=self.status, headers=self.headers)


def shape(status: int, reason: str, message: str, domain: str = "global", **more: Any) -> dict[str, Any]:
    """`{"error": {"code", "message", "errors": [{"message", "domain", "reason"}], "status"}}`; `more` joins it."""
    errors = [{"message": message, "domain": domain, "reason": reason}]
    named = {"status": _STATUS.get(status, "UNKNOWN")}
    return {"error": {"code": status, "message": message, "errors": errors, **named, **more}}


def refusal(status: int, reason: str, message: str, domain: str = "global", **more: Any) -> Refusal:
    return Refusal(status, shape(status, reason, message, domain, **more))


def unauthenticated() -> Refusal:
    message = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
        "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    body = shape(401, "authError", message)
    body["error"]["errors"][0] |= {"message": "Invalid Credentials", "location": "Authorization"}
    return Refusal(
        401, body, {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/", error="invalid_token"'}
    )


def insufficient_scopes(method: str) -> Refusal:
    detail = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
        "domain": "googleapis.com",
        "metadata": {"method": method, "service": "gmail.googleapis.com"},
    }
    return refusal(403, "insufficientPermissions", "Request had insufficient authentication scopes.", details=[detail])


def not_found() -> Refusal:
    return refusal(404, "notFound", "Requested entity was not found.")


def invalid(message: str) -> Refusal:
    return refusal(400, "invalidArgument", message)


def sending_limit(until: str) -> Refusal:
    """The mailbox's sending quota: the time stands in the text alone."""
    message = f"User-rate limit exceeded.  Retry after {until} (Mail sending)"
    return refusal(429, "rateLimitExceeded", message, "usageLimits")


class OAuthRefusal(Refusal):
    """`{"error", "error_description"}`, as RFC 6749 5.2 and Google's token endpoint write it."""

    def __init__(self, error: str, description: str, status: int = 400, **more: str) -> None:
        super().__init__(status, {"error": error, "error_description": description, **more})
