"""x402 on the wire: both versions, every dialect of wire.md 1.6, and nothing but ``ValueError`` for the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.errors import HeaderTooLarge, MalformedPayment
from x402kit.model import HEADER_MAX, Json, PaymentRequirements, ResourceInfo, SettlementResponse, VerifyResponse
from x402kit.protocols import x402

from .support.payments import changed

ENTRY: Json = {
    "scheme": "exact",
    "network": "eip155:8453",
    "amount": "13938",
    "asset": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "payTo": "0x00000000000000000000000000000000C0FfeE00",
    "maxTimeoutSeconds": 300,
    "extra": {"name": "USD Coin", "version": "2"},
}
OFFER = PaymentRequirements(
    "exact", "eip155:8453", 13938, ENTRY["asset"], ENTRY["payTo"], 300, {"name": "USD Coin", "version": "2"}
)
V1_ENTRY = changed(ENTRY, {"amount": None, "maxAmountRequired": "13938", "network": "base", "resource": "https://x/"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_an_offer_is_read_in_both_versions() -> None:
    assert x402.parse_requirements(ENTRY) == OFFER
    assert x402.parse_requirements(V1_ENTRY) == OFFER


@pytest.mark.parametrize(
    "changes",
    [
        {"maxAmountRequired": "13938"},  # row 2: both, and equal
        {"amount": None, "maxAmountRequired": "13938"},
        {"extra": None},  # rows 5 and 6
        {"maxTimeoutSeconds": 3600},  # row 10
        {"unheardOf": "x"},
    ],
)
def test_the_dialects_of_an_offer_are_read(changes: Json) -> None:
    assert x402.parse_requirements(changed(ENTRY, changes)).amount == 13938


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": None},
        {"amount": "1", "maxAmountRequired": "2"},
        {"amount": 13938},
        {"amount": "1_000"},
        {"amount": "-1"},
        {"scheme": None},
        {"scheme": ""},
        {"scheme": 1},
        {"network": "x" * 129},
        {"asset": ["0x"]},
        {"payTo": {}},
        {"maxTimeoutSeconds": None},
        {"maxTimeoutSeconds": "300"},
        {"maxTimeoutSeconds": True},
        {"maxTimeoutSeconds": 0},
        {"maxTimeoutSeconds": -1},
        {"maxTimeoutSeconds": 2**31},
        {"extra": []},
        {"extra": "x"},
    ],
)
def test_A12_an_offer_with_a_fault_is_refused(changes: Json) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        x402.parse_requirements(changed(ENTRY, changes))


def test_every_short_network_name_has_its_way_back() -> None:
    for name, caip in x402.V1_NETWORKS.items():
        assert x402.caip2(name) == x402.caip2(caip) == caip
        assert x402.v1_network(caip) == name
    assert x402.v1_network("eip155:999999") is None
    assert x402.caip2("eip155:999999") == "eip155:999999"


def test_offers_are_written_as_they_are_read() -> None:
    made = x402.requirements_json(OFFER)
    assert made["amount"] == made["maxAmountRequired"] == "13938"
    assert x402.parse_requirements(made) == OFFER
    old = x402.requirements_json_v1(OFFER, ResourceInfo("https://x/", "words", "application/json"))
    assert old is not None
    assert "amount" not in old
    assert (old["network"], old["resource"], old["description"]) == ("base", "https://x/", "words")
    assert x402.parse_requirements(old) == OFFER


def test_v1_has_no_offer_for_a_network_that_it_can_not_name() -> None:
    made = PaymentRequirements("exact", "eip155:999999", 1, "0x1", "0x2", 300)
    assert x402.requirements_json_v1(made, ResourceInfo("https://x/")) is None


def payload(**changes: Any) -> Json:
    return changed({"x402Version": 2, "accepted": ENTRY, "payload": {"signature": "0x"}}, changes)


def test_a_payment_is_read_in_every_dialect() -> None:
    v2 = x402.parse_payment_payload(payload(resource={"url": "https://x/", "mimeType": 1}, extensions={"a": {}}))
    assert (v2.x402_version, v2.scheme, v2.network, v2.accepted) == (2, "exact", "eip155:8453", OFFER)
    assert v2.resource == ResourceInfo("https://x/")
    assert v2.extensions == {"a": {}}
    v1 = x402.parse_payment_payload(payload(x402Version=1, accepted=None, scheme="exact", network="base"))
    assert (v1.x402_version, v1.scheme, v1.network, v1.accepted) == (1, "exact", "eip155:8453", None)
    venice = x402.parse_payment_payload(payload(accepted=None, scheme="exact", network="eip155:8453"))
    assert (venice.x402_version, venice.network, venice.accepted, venice.quote) == (2, "eip155:8453", None, "")


def test_a_quote_is_text_or_nothing() -> None:
    for value, quote in (("q", "q"), (1, ""), (None, ""), (["q"], "")):
        accepted = {**ENTRY, "extra": {"quote": value}}
        assert x402.parse_payment_payload(payload(accepted=accepted)).quote == quote


@pytest.mark.parametrize(
    "changes",
    [
        {"x402Version": None},
        {"x402Version": 3},
        {"x402Version": "2"},
        {"x402Version": True},
        {"x402Version": [2]},
        {"payload": None},
        {"payload": "0x"},
        {"accepted": None},
        {"accepted": "exact"},
        {"accepted": []},
        {"accepted": {}},
        {"extensions": []},
        {"accepted": None, "scheme": "exact"},
    ],
)
def test_A12_a_payment_with_a_fault_is_refused(changes: Json) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        x402.parse_payment_payload(payload(**changes))


def test_a_challenge_is_read_and_what_we_can_not_read_is_left_out() -> None:
    made = x402.parse_payment_required(
        {
            "x402Version": 2,
            "error": "Payment required",
            "resource": {"url": "https://x/"},
            "accepts": [1, {"scheme": "upto"}, ENTRY, V1_ENTRY],
            "extensions": {},
        }
    )
    assert made.accepts == (OFFER, OFFER)
    assert made.raw_accepts == (ENTRY, V1_ENTRY)
    assert (made.error, made.resource) == ("Payment required", ResourceInfo("https://x/"))
    katana = x402.parse_payment_required({"x402Version": 2, "accepts": [ENTRY], "error": 7})
    assert (katana.resource, katana.error) == (None, "")


def test_K01_a_thousand_offers_are_not_all_read() -> None:
    assert len(x402.parse_payment_required({"x402Version": 2, "accepts": [ENTRY] * 1000}).accepts) == 64


@pytest.mark.parametrize("changes", [{"accepts": None}, {"accepts": {}}, {"x402Version": 0}, {"extensions": 1}])
def test_a_challenge_with_a_fault_is_refused(changes: Json) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        x402.parse_payment_required(changed({"x402Version": 2, "accepts": [ENTRY]}, changes))


def test_receipts_are_written_as_they_are_read() -> None:
    for receipt in (
        SettlementResponse(True, "eip155:8453", "0xabc", "0xdef", 13938),
        SettlementResponse(False, "eip155:8453", error_reason="insufficient_funds"),
    ):
        assert x402.parse_settlement_response(x402.settlement_json(receipt)) == receipt
        old = x402.settlement_json(receipt, v1=True)
        assert old["network"] == "base"
        assert x402.parse_settlement_response(old) == receipt
    assert x402.settlement_json(SettlementResponse(True, "eip155:999999"), v1=True)["network"] == "eip155:999999"


def test_I05_a_receipt_without_success_is_no_answer() -> None:
    for made in ({}, {"success": "true"}, {"success": 1}, {"success": None}):
        with pytest.raises(ValueError, match="success"):
            x402.parse_settlement_response(made)
    with pytest.raises(ValueError, match="plain decimal"):
        x402.parse_settlement_response({"success": True, "amount": 5})


def test_verifications_are_written_as_they_are_read() -> None:
    for answer in (VerifyResponse(True, "0xdef"), VerifyResponse(False, "", "invalid_network")):
        assert x402.parse_verify_response(x402.verify_json(answer)) == answer
    for made in ({}, {"isValid": "true"}, {"isValid": 1}):
        with pytest.raises(ValueError, match="isValid"):
            x402.parse_verify_response(made)


def test_headers_go_there_and_back() -> None:
    made = {"x402Version": 2, "error": "em dash — and \r\n"}
    text = x402.encode_header(made)
    assert text.isascii()
    assert x402.decode_header(text) == made


def test_A11_one_payment_in_one_request() -> None:
    find = x402.find_payment
    assert find([]) is None
    assert find([(b"host", b"x"), (b"x-payment", b"a")]) == b"a"
    assert find([(b"payment-signature", b"a"), (b"x-402-payment", b"a")]) == b"a"
    assert find([(b"x-payment", b"")]) == b""
    for headers in (
        [(b"payment-signature", b"a"), (b"payment-signature", b"a")],
        [(b"payment-signature", b"a"), (b"x-402-payment", b"b")],
        [(b"x-payment", b"a"), (b"payment-signature", b"b")],
        [(b"payment-signature", b"a"), (b"x-payment", b"a"), (b"payment-signature", b"a")],
        [(b"payment-signature", b""), (b"x-payment", b"b")],
    ):
        with pytest.raises(MalformedPayment):
            find(headers)


def test_K01_a_payment_header_over_the_limit_is_refused_before_it_is_read() -> None:
    assert x402.find_payment([(b"x-payment", b"a" * HEADER_MAX)])
    with pytest.raises(HeaderTooLarge):
        x402.find_payment([(b"x-payment", b"a" * (HEADER_MAX + 1))])


@given(st.dictionaries(st.sampled_from(["x402Version", "payload", "accepted", "scheme", "network", "resource"]), JSON))
def test_A12_any_object_is_a_payment_or_a_value_error(made: Json) -> None:
    for read in (x402.parse_payment_payload, x402.parse_payment_required, x402.parse_settlement_response):
        try:
            read({**made, "x402Version": 2, "accepts": made.get("payload"), "success": made.get("scheme")})
        except ValueError:
            continue


@given(st.sampled_from(sorted(ENTRY)), JSON)
def test_A12_any_field_is_read_or_a_value_error(key: str, value: Any) -> None:
    try:
        made = x402.parse_requirements({**ENTRY, key: value})
    except ValueError:
        return
    assert 0 <= made.amount < 2**256
    assert x402.parse_requirements(x402.requirements_json(made)) == made
