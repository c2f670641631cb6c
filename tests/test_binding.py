"""Quotes: stateless, bound to everything, injective, rotated, and forgiving by a few seconds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.errors import ConfigError, PaymentRefused
from x402kit.model import LEEWAY_SECONDS, PaymentRequirements
from x402kit.paywall.binding import Binding, Quotes
from x402kit.protocols.encoding import b64url, b64url_decode

NOW = 1_800_000_000
BINDING = Binding("POST", "https://shop.example", "/v1/chat", b"a=1", "chat", b"\x01" * 32)
OFFER = PaymentRequirements("exact", "eip155:8453", 10_000, "0xasset", "0xseller", 300)
QUOTES = Quotes(b"a secret of the tests")

TEXT = st.text(max_size=6)
BYTES = st.binary(max_size=6)
BINDINGS = st.builds(Binding, TEXT, TEXT, TEXT, BYTES, TEXT, BYTES, BYTES)


def refused(quote: str, binding: Binding = BINDING, offer: PaymentRequirements = OFFER, now: int = NOW) -> str:
    with pytest.raises(PaymentRefused) as caught:
        QUOTES.check(quote, binding.packed(), offer, now)
    return caught.value.reason


@given(BINDINGS, BINDINGS)
def test_G08_two_requests_never_join_alike(one: Binding, other: Binding) -> None:
    assert (one == other) == (one.packed() == other.packed()) == (one.fingerprint() == other.fingerprint())


def test_G08_a_border_can_not_be_moved() -> None:
    moved = [
        BINDING._replace(method="POSTh", origin="ttps://shop.example"),
        BINDING._replace(path="/v1/chata=1", query=b""),
        BINDING._replace(resource="", body=b"chat" + BINDING.body),
    ]
    assert len({made.packed() for made in (BINDING, *moved)}) == 4


def test_a_path_that_is_no_text_has_its_own_binding() -> None:
    assert BINDING._replace(path="/\udcff").packed() != BINDING._replace(path="/\udcfe").packed()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"origin": "https://other.example"},  # A03
        {"path": "/v1/chat/"},  # A04
        {"query": b"a=2"},  # A07
        {"query": b""},
        {"resource": "other"},
        {"body": b"\x02" * 32},  # A06
        {"body": b""},
        {"headers": b"\x01"},
    ],
)
def test_A03_A04_A06_A07_a_quote_is_for_one_request(changes: dict[str, Any]) -> None:
    quote = QUOTES.make(BINDING.packed(), OFFER, NOW + 300)
    QUOTES.check(quote, BINDING.packed(), OFFER, NOW)
    assert refused(quote, BINDING._replace(**changes)) == "quote_mismatch"


@pytest.mark.parametrize(
    "changes",
    [{"amount": 1}, {"pay_to": "0xthief"}, {"asset": "0xworthless"}, {"network": "eip155:84532"}, {"scheme": "upto"}],
)
def test_A01_A02_a_quote_is_for_one_offer(changes: dict[str, Any]) -> None:
    quote = QUOTES.make(BINDING.packed(), OFFER, NOW + 300)
    assert refused(quote, offer=OFFER._replace(**changes)) == "quote_mismatch"


def test_A15_a_quote_is_good_until_its_leeway_is_over() -> None:
    quote = QUOTES.make(BINDING.packed(), OFFER, NOW)
    for now in (NOW - 300, NOW - 1, NOW, NOW + 1, NOW + LEEWAY_SECONDS):
        QUOTES.check(quote, BINDING.packed(), OFFER, now)
    assert refused(quote, now=NOW + LEEWAY_SECONDS + 1) == "quote_expired"
    assert refused(quote, now=NOW + 120) == "quote_expired"


def test_A15_the_expiry_can_not_be_moved() -> None:
    token = bytearray(b64url_decode(QUOTES.make(BINDING.packed(), OFFER, NOW)))
    token[:4] = (NOW + 9999).to_bytes(4, "big")
    assert refused(b64url(bytes(token)), now=NOW + 100) == "quote_mismatch"


def test_every_bit_of_a_quote_counts() -> None:
    token = b64url_decode(QUOTES.make(BINDING.packed(), OFFER, NOW + 300))
    for index in range(len(token) * 8):
        made = bytearray(token)
        made[index // 8] ^= 1 << index % 8
        assert refused(b64url(bytes(made))) == "quote_mismatch"


@pytest.mark.parametrize("quote", ["", "a", "=", "A" * 42, "A" * 44, "ä" * 43, "+" * 43, "\ud800", "A" * 9999])
def test_what_is_no_quote_is_refused(quote: str) -> None:
    assert refused(quote) == "quote_invalid"


@given(st.text(max_size=60))
def test_any_text_as_a_quote_is_refused(quote: str) -> None:
    assert refused(quote) in ("quote_invalid", "quote_mismatch")


def test_G09_a_secret_is_rotated_with_both_accepted_and_the_first_signing() -> None:
    old, new = b"the old secret of the tests", b"the new secret of the tests"
    packed = BINDING.packed()
    before, both, after = Quotes(old), Quotes(new, old), Quotes(new)
    both.check(before.make(packed, OFFER, NOW), packed, OFFER, NOW)
    both.check(after.make(packed, OFFER, NOW), packed, OFFER, NOW)
    after.check(both.make(packed, OFFER, NOW), packed, OFFER, NOW)
    with pytest.raises(PaymentRefused, match="quote_mismatch"):
        after.check(before.make(packed, OFFER, NOW), packed, OFFER, NOW)


def test_two_quotes_of_one_request_differ() -> None:
    assert QUOTES.make(BINDING.packed(), OFFER, NOW) != QUOTES.make(BINDING.packed(), OFFER, NOW)


def test_a_short_secret_is_refused() -> None:
    for secrets in ((), (b"short",), (b"a secret of the tests", b"")):
        with pytest.raises(ConfigError, match="16 bytes"):
            Quotes(*secrets)
