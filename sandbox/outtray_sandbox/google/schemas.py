"""What a request may hold, read from the discovery document: unknown names and wrong types are refused."""

from __future__ import annotations

import base64
import binascii
import json
from functools import lru_cache
from typing import Any

from googleapiclient.discovery_cache import get_static_doc

from outtray_sandbox.google.errors import Refusal, invalid

STANDARD = {"alt", "uploadType", "upload_id", "prettyPrint", "fields", "key", "quotaUser", "upload_protocol"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
}


@lru_cache(maxsize=1)
def discovery() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(get_static_doc("gmail", "v1"))
    return document


def method_of(name: str) -> dict[str, Any]:
    """`drafts.send`, `messages.attachments.get`, `getProfile`, … below `users`."""
    *resources, method = name.split(".")
    found = discovery()["resources"]["users"]
    for resource in resources:
        found = found["resources"][resource]
    described: dict[str, Any] = found["methods"][method]
    return described


def check_query(name: str, names: set[str]) -> None:
    unknown = sorted(names - STANDARD - set(method_of(name).get("parameters", {})))
    if unknown:
        raise invalid(f'Invalid JSON payload received. Unknown name "{unknown[0]}": Cannot bind query parameter.')


def check_body(name: str, text: bytes) -> dict[str, Any]:
    """A request's JSON, which must fit the method's schema. Raises `Refusal`."""
    try:
        said = json.loads(text or b"{}")
    except ValueError:
        raise _parse_error() from None
    schema = method_of(name).get("request", {}).get("$ref")
    if not isinstance(said, dict) or schema is None:
        raise _parse_error()
    _check(said, {"$ref": schema}, "")
    return said


def _parse_error() -> Refusal:
    return invalid("Invalid JSON payload received. Unexpected token.")


def _check(value: Any, named: dict[str, Any], at: str) -> None:
    schema = discovery()["schemas"][named["$ref"]] if "$ref" in named else named
    kind = schema.get("type", "object")
    if not _is(value, kind) or (kind == "integer" and isinstance(value, bool)):
        raise invalid(f"Invalid value at '{at or 'body'}' (TYPE_{kind.upper()})")
    if kind == "object":
        for name, inner in value.items():
            _check_property(name, inner, schema, at)
    elif kind == "array":
        for number, inner in enumerate(value):
            _check(inner, schema["items"], f"{at}[{number}]")
    elif schema.get("format") == "byte":
        decoded(value, at)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind])


def _check_property(name: str, value: Any, schema: dict[str, Any], at: str) -> None:
    properties = schema.get("properties")
    if properties is None:
        return
    if name not in properties:
        where = f" at '{at}'" if at else ""
        raise invalid(f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.')
    _check(value, properties[name], f"{at}.{name}".lstrip("."))


def decoded(value: str, at: str = "raw") -> bytes:
    """base64url, padded or not, as the API takes it; the other alphabet as well. Raises `Refusal`."""
    text = value.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"Invalid value at '{at}' (TYPE_BYTES), Base64 decoding failed for \"{value[:20]}\"") from None
