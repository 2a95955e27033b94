"""Addresses: what is read, what is refused, and which two are one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.address import Address, normalise_address, parse_address
from outtray_schema.errors import InvalidMessage


@pytest.mark.parametrize(
    ("text", "email", "name"),
    [
        ("ann@example.com", "ann@example.com", ""),
        ("  Ann Lee <Ann.Lee+x@Example.COM> ", "Ann.Lee+x@example.com", "Ann Lee"),
        ('"Lee, Ann \\"A\\"" <ann@example.com>', "ann@example.com", 'Lee, Ann "A"'),
        ("<ann@example.com>", "ann@example.com", ""),
        ("Jörg <jörg@bücher.example>", "jörg@xn--bcher-kva.example", "Jörg"),
        ('"foo..bar"@example.jp', '"foo..bar"@example.jp', ""),
        ('"plain"@example.jp', "plain@example.jp", ""),
        ("कुमार@example.in", "कुमार@example.in", ""),
    ],
)
def test_an_address_is_read_with_its_name(text: str, email: str, name: str) -> None:
    assert parse_address(text) == Address(email, name)
    assert parse_address(text).email == email


@pytest.mark.parametrize(
    "text",
    [
        "", "ann", "ann@", "@example.com", "ann@localhost", "ann@1.2.3.4", "ann@[1.2.3.4]", "a b@example.com",
        "a@example.com, b@example.com", "ann@exa mple.com", "ann@-x.com", "ann@x..com", ".a@example.com",
        "a..b@example.com", "ann@example.com\r\nBcc: eve@example.com", "Ann\r\nBcc: e <ann@example.com>",
        "Ann\x00 <ann@example.com>", "Ann\u2028 <ann@example.com>", "a\x85b@example.com", "\ud800@example.com",
        "ann@💩.example", "ann@a‍b.example", "ann@" + "x" * 64 + ".com",
        "x" * 65 + "@example.com", "Ann <<ann@example.com>>",
        "x" * 300,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_address(text)


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        ("straße.example", "xn--strae-oqa.example"),
        ("STRASSE.example", "strasse.example"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("βόλος.example", "xn--nxasmm1c.example"),
    ],
)
def test_a_domain_is_read_as_registries_and_browsers_read_it(domain: str, ascii_form: str) -> None:
    """By IDNA 2008 and UTS 46, nontransitional: by that of 2003 straße.example would be another's (RFC 5894 7.2)."""
    assert Address(f"ann@{domain}").domain == ascii_form


def test_two_spellings_of_one_address_are_one() -> None:
    spellings = {"Ann@Example.com", "ann@EXAMPLE.com", "ANN@example.COM"}
    assert {normalise_address(each) for each in spellings} == {"ann@example.com"}
    assert normalise_address("JÖRG@bücher.example") == normalise_address("jo\u0308rg@xn--bcher-kva.example")


def test_dots_and_tags_tell_addresses_apart() -> None:
    assert len({normalise_address(each) for each in ("ann.lee@x.com", "annlee@x.com", "annlee+a@x.com")}) == 3


@given(st.text(max_size=80))
def test_no_text_becomes_an_address_that_could_break_out_of_a_header(text: str) -> None:
    try:
        address = parse_address(f"{text}@example.com")
    except InvalidMessage:
        return
    for part in (address.email, address.name):
        assert part.isprintable() or not set(part) & set("\r\n\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    assert len(address.email.splitlines()) == 1
    assert " " not in address.email or address.email.startswith('"')
