"""What of an EVM payment is decided offline: the order, the published reasons, and nothing but the right digits."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from tests.support.evm_payments import NETWORK, PAY_TO, PRICE, USDC, offer_for, payload_of, sign, signed_payload
from x402kit.devnet.evm import ACCOUNTS
from x402kit.errors import MalformedPayment, PaymentRefused
from x402kit.model import VALID_FOR_MAX, VALID_FOR_MIN, Authorization, Json, PaymentPayload, PaymentRequirements
from x402kit.networks import EvmOptions, EvmRail
from x402kit.networks.evm import Transfer, check, checksum, domain_separator, is_eoa_signature, parse

PAYER = ACCOUNTS[1]
OFFER = offer_for()
NOW = 1_800_000_000
RAIL = EvmRail(NETWORK, pay_to=PAY_TO, options=EvmOptions(contract_wallets=False))
PREFIX = "invalid_exact_evm_payload_"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def payment(**changes: Any) -> Json:
    given: dict[str, Any] = {"valid_before": NOW + 600, **changes}
    return signed_payload(PAYER, **given)


def read(payload: Json, offer: PaymentRequirements = OFFER) -> Authorization:
    return parse(PaymentPayload(2, "exact", NETWORK, payload), offer)


def refusal(payload: Json, offer: PaymentRequirements = OFFER, now: int = NOW) -> str:
    """Why the rail refuses it, or an empty string; it has no node to ask."""
    try:
        RAIL.check(read(payload, offer), offer, now)
    except PaymentRefused as e:
        return e.reason
    return ""


def edited(payload: Json, **fields: Any) -> Json:
    return {**payload, "authorization": {**payload["authorization"], **fields}}


def test_a_good_payment_passes_and_says_who_pays() -> None:
    made = payment()
    assert refusal(made) == ""
    authorization = read(made)
    assert authorization.payer == PAYER.address
    assert (authorization.amount, authorization.valid_until) == (PRICE, NOW + 600)


def test_the_digest_is_the_one_that_wallets_sign() -> None:
    nonce = secrets.token_bytes(32)
    made = Transfer(PAYER.address.lower(), PAY_TO.lower(), PRICE, 0, NOW + 600, nonce, b"")
    kinds = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
    names = ("from", "to", "value", "validAfter", "validBefore", "nonce")
    types = {"TransferWithAuthorization": [{"name": n, "type": k} for n, k in zip(names, kinds, strict=True)]}
    domain = {"name": "USD Coin", "version": "2", "chainId": 8453, "verifyingContract": USDC.address}
    values = (made.payer, made.to, made.value, made.valid_after, made.valid_before, made.nonce)
    signed = Account.sign_typed_data(PAYER.private_key, domain, types, dict(zip(names, values, strict=True)))
    assert sign(made, PAYER).signature == bytes(signed.signature)
    assert domain_separator(USDC).hex() == "02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"


@pytest.mark.parametrize(
    "wrong",
    [
        {"network": "eip155:84532"},
        {"address": "0x036CbD53842c5426634e7929541eC2318f3dCF7e"},
        {"name": "USDC"},
        {"version": "1"},
    ],
    ids=["chainId", "verifyingContract", "name", "version"],
)
def test_B01_signed_for_another_domain(wrong: dict[str, Any]) -> None:
    assert refusal(payment(asset=replace(USDC, **wrong))) == PREFIX + "signature"


@pytest.mark.parametrize("value", [PRICE - 1, PRICE + 1, 0, 1, 2**255])
def test_B02_only_the_exact_amount(value: int) -> None:
    assert refusal(payment(value=value)) == PREFIX + "authorization_value_mismatch"


@pytest.mark.parametrize(
    "fields",
    [
        {"value": str(2**256)},
        {"value": "1" + "0" * 78},
        {"validBefore": str(2**64)},
        {"validBefore": str(2**64 + 1)},
        {"validBefore": 2**64 + 1},
        {"validAfter": -1},
        {"validAfter": "-1"},
        {"validAfter": True},
        {"validBefore": 1e9},
        {"validBefore": None},
        {"value": PRICE},
        {"value": 1e4},
        {"nonce": "0x" + "00" * 31},
        {"nonce": "0x" + "00" * 33},
        {"nonce": "00" * 32},
        {"from": PAYER.address[:-1]},
        {"to": PAY_TO + "\n"},
    ],
    ids=repr,
)
def test_B03_numbers_out_of_range_are_400(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedPayment) as refused:
        read(edited(payment(), **fields))
    assert refused.value.status == 400


def test_B03_the_largest_value_is_a_number_and_no_price() -> None:
    assert refusal(payment(value=2**256 - 1)) == PREFIX + "authorization_value_mismatch"


@pytest.mark.parametrize(
    "text", ["1_0000", "１００００", "٣", " 10000", "10000\n", "+10000", "-0", "010000", "0x2710", ""]
)
def test_A13_B03_number_lookalikes_are_400(text: str) -> None:
    for name in ("value", "validAfter", "validBefore"):
        with pytest.raises(MalformedPayment):
            read(edited(payment(), **{name: text}))


@given(st.text(max_size=90) | st.integers() | st.floats() | st.none() | st.lists(st.integers(), max_size=2))
def test_B03_a_value_is_the_price_or_it_is_refused(value: Any) -> None:
    made = edited(payment(), value=value)
    try:
        RAIL.check(read(made), OFFER, NOW)
    except (MalformedPayment, PaymentRefused):
        assert value != str(PRICE)
    else:
        assert value == str(PRICE)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.dictionaries(st.text(), c)))
def test_B03_any_payload_is_read_or_400(junk: Any) -> None:
    for made in ({"signature": junk, "authorization": junk}, {**payment(), "authorization": junk}):
        with pytest.raises(MalformedPayment):
            read(made)


def test_times_may_be_json_numbers_as_katana_sends_them() -> None:
    assert refusal(edited(payment(), validAfter=0, validBefore=NOW + 600)) == ""


def spellings(payload: Json) -> dict[str, Json]:
    """The same signed message with its signature in other words."""
    raw = bytes.fromhex(payload["signature"][2:])
    r, s, parity = raw[:32], int.from_bytes(raw[32:64], "big"), raw[64] - 27
    twin = r + (ORDER - s).to_bytes(32, "big") + bytes((27 + (1 - parity),))
    compact = r + (s | parity << 255).to_bytes(32, "big")
    made = {"low v": raw[:64] + bytes((parity,)), "high s": twin, "EIP-2098": compact, "v 29": raw[:64] + b"\x1d"}
    texts = {name: "0x" + value.hex() for name, value in made.items()}
    texts["upper case"] = "0x" + raw.hex().upper()
    return {name: {**payload, "signature": text} for name, text in texts.items()}


def test_B04_one_message_is_one_payment_however_it_is_spelled() -> None:
    first = payment()
    for name, other in spellings(first).items():
        assert read(other).payment_id == read(first).payment_id, name
    shouted = edited(first, nonce="0x" + first["authorization"]["nonce"][2:].upper())
    assert read(shouted).payment_id == read(first).payment_id
    checksummed = edited(first, **{"from": PAYER.address, "to": PAY_TO})
    assert read(checksummed).payment_id == read(first).payment_id


def test_B04_only_the_canonical_signature_is_accepted() -> None:
    reasons = {name: refusal(made) for name, made in spellings(payment()).items()}
    bad = PREFIX + "signature"
    assert reasons == {"low v": "", "upper case": "", "high s": bad, "EIP-2098": bad, "v 29": bad}


@pytest.mark.parametrize("text", ["", "0x", "0x0", "0xzz", "0x" + "00" * 4097, 7, None])
def test_B04_a_signature_is_hex(text: Any) -> None:
    with pytest.raises(MalformedPayment):
        read({**payment(), "signature": text})


@given(st.binary(min_size=1, max_size=200))
def test_B04_no_random_bytes_are_a_signature(junk: bytes) -> None:
    assert refusal({**payment(), "signature": "0x" + junk.hex()}) == PREFIX + "signature"


def test_B04_a_key_that_is_not_froms() -> None:
    assert refusal(signed_payload(ACCOUNTS[2], payer=PAYER.address, valid_before=NOW + 600)) == PREFIX + "signature"


@pytest.mark.parametrize("payer", ["0x" + "00" * 19 + "04", "0x" + "00" * 20, "0x" + "00" * 18 + "0100"])
def test_B10_a_precompile_pays_nothing(payer: str) -> None:
    assert refusal(payment(payer=payer)) == PREFIX + "authorization_from"


def test_paying_oneself_is_no_payment() -> None:
    offer = OFFER._replace(pay_to=PAYER.address)
    assert refusal(payment(to=PAYER.address.lower()), offer) == PREFIX + "authorization_from"


def test_B13_the_chain_is_in_the_payments_id_and_in_its_signature() -> None:
    made = payment()
    elsewhere = OFFER._replace(network="eip155:84532")
    assert read(made).payment_id != read(made, elsewhere).payment_id
    assert read(made).payment_id.startswith(f"evm:8453:{USDC.address.lower()}:{PAYER.address.lower()}:0x")
    transfer = read(made).body
    assert is_eoa_signature(transfer, USDC)
    assert not is_eoa_signature(transfer, replace(USDC, network="eip155:84532"))
    with pytest.raises(PaymentRefused, match="network_mismatch"):
        check(read(made), OFFER, "eip155:84532", NOW)


@pytest.mark.parametrize(
    ("valid_before", "accepted"),
    [
        (NOW - 1, False),
        (NOW + 3, False),
        (NOW + VALID_FOR_MIN - 1, False),
        (NOW + VALID_FOR_MIN, True),
        (NOW + VALID_FOR_MAX, True),
        (NOW + VALID_FOR_MAX + 1, False),
        (NOW + 10 * 365 * 86400, False),
        (2**64 - 1, False),
    ],
)
def test_B14_a_life_neither_too_short_nor_too_long(valid_before: int, accepted: bool) -> None:
    expected = "" if accepted else PREFIX + "authorization_valid_before"
    assert refusal(payment(valid_before=valid_before)) == expected


def test_B14_not_yet_valid() -> None:
    assert refusal(payment(valid_after=NOW + 1)) == PREFIX + "authorization_valid_after"
    assert refusal(payment(valid_after=NOW)) == ""


def test_the_first_of_several_faults_is_named() -> None:
    """Recipient, amount, end, beginning, payer, signature: the order of the table in evm.py."""
    faults: list[tuple[str, dict[str, Any]]] = [
        ("recipient_mismatch", {"to": ACCOUNTS[3].address.lower()}),
        ("authorization_value_mismatch", {"value": 1}),
        ("authorization_valid_before", {"valid_before": NOW}),
        ("authorization_valid_after", {"valid_after": NOW + 5}),
        ("authorization_from", {"payer": "0x" + "00" * 20}),
        ("signature", {}),
    ]
    while faults:
        changes = {name: value for _, fault in faults for name, value in fault.items()}
        assert refusal({**payment(**changes), "signature": "0x" + "00" * 65}) == PREFIX + faults[0][0]
        faults.pop(0)


@given(st.binary(min_size=20, max_size=20))
def test_checksums_are_eth_accounts(raw: bytes) -> None:
    from eth_utils.address import to_checksum_address

    assert checksum("0x" + raw.hex()) == to_checksum_address(raw)


def test_a_payload_round_trips() -> None:
    transfer = read(payment()).body
    assert read(payload_of(transfer)).body == transfer


def test_contract_wallets_signatures_are_left_to_the_chain() -> None:
    rail = EvmRail(NETWORK, pay_to=PAY_TO)
    for signature in ("0x" + "11" * 64 + "1b", "0x" + "22" * 200):
        rail.check(read({**payment(), "signature": signature}), OFFER, NOW)


def test_the_whole_check_is_quick() -> None:
    """Floors are bench's; here only that no slow path crept in (K03)."""
    payments = [read(payment()) for _ in range(50)]
    started = time.thread_time()
    for authorization in payments:
        RAIL.check(authorization, OFFER, NOW)
    assert (time.thread_time() - started) / 50 < 0.002
