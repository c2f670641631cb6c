"""`x402kit inspect` on Solana: an offer and a payment are told in words, and every fault has its code."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from solders.hash import Hash
from solders.keypair import Keypair

from tests.support.svm_payments import NETWORK, PAY_TO, USDC, encoded, signed, standard, transfer
from x402kit.cli.inspect import look_at_value
from x402kit.cli.report import Report
from x402kit.model import Json
from x402kit.protocols.x402 import encode_header

FEES, WALLET = Keypair.from_seed(b"f" * 32), Keypair.from_seed(b"w" * 32)
BLOCKHASH = Hash.from_bytes(b"\x07" * 32)
RESOURCE = {"url": "https://seller.example/a", "description": "words"}


def offer(*, extra: Json | None = None, **changes: Any) -> Json:
    named = {"feePayer": str(FEES.pubkey()), "recentBlockhash": str(BLOCKHASH), **(extra or {})}
    named = {key: value for key, value in named.items() if value is not None}
    made = {"scheme": "exact", "network": NETWORK, "amount": "10000", "asset": USDC.address, "payTo": PAY_TO}
    return {**made, "maxTimeoutSeconds": 300, "extra": named, **changes}


def looked(value: Json) -> Report:
    return look_at_value(encode_header(value))


def challenge(entry: Json) -> Report:
    return looked({"x402Version": 2, "error": "", "resource": RESOURCE, "accepts": [entry]})


def payload(steps: Any = None, **changes: Any) -> Json:
    made = signed(FEES.pubkey(), steps or standard(WALLET.pubkey(), **changes), [WALLET], BLOCKHASH)
    return encoded(made)


def payment(accepted: Json | None = None, made: Json | None = None) -> Report:
    return looked({"x402Version": 2, "accepted": accepted or offer(), "payload": made or payload()})


def found(report: Report) -> tuple[set[str], set[str]]:
    return {each.code for each in report.problems}, {each.code for each in report.notes}


@pytest.mark.parametrize(
    ("entry", "problems", "notes"),
    [
        (offer(), set[str](), set[str]()),
        (offer(extra={"feePayer": None}), {"fee_payer_missing"}, set[str]()),
        (offer(extra={"recentBlockhash": None}), set[str](), {"blockhash_missing"}),
        (offer(extra={"createRecipientAccount": True}), set[str](), {"account_missing"}),
        (offer(extra={"decimals": 9}), {"decimals_mismatch"}, set[str]()),
        (offer(payTo="0x" + "11" * 20), {"address_invalid"}, set[str]()),
        (offer(asset=USDC.address.lower()), {"address_invalid", "asset_unknown"}, set[str]()),
        (offer(asset=PAY_TO), {"asset_unknown"}, set[str]()),
        (offer(network="solana:x"), {"network_unknown"}, set[str]()),
    ],
)
def test_an_offer(entry: Json, problems: set[str], notes: set[str]) -> None:
    assert found(challenge(entry)) == (problems, notes)


def test_a_good_payment_is_told_in_words() -> None:
    report = payment()
    assert found(report) == (set(), set())
    said = "\n".join(report.lines)
    for word in ("0.010000 USDC", str(WALLET.pubkey()), str(FEES.pubkey()), "svm:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp:"):
        assert word in said


PREFIX = "invalid_exact_svm_payload_"


@pytest.mark.parametrize(
    ("accepted", "made", "problems", "notes"),
    [
        (offer(), payload(amount=9_999), {PREFIX + "amount_mismatch"}, set[str]()),
        (offer(), payload(pay_to=str(WALLET.pubkey())), {PREFIX + "recipient_mismatch"}, set[str]()),
        (offer(extra={"feePayer": PAY_TO}), payload(), {"invalid_exact_svm_fee_payer_mismatch"}, set[str]()),
        (offer(extra={"feePayer": "me"}), payload(), {"address_invalid"}, set[str]()),
        (offer(extra={"memo": "order 7"}), payload(), {PREFIX + "memo_mismatch"}, set[str]()),
        (offer(), payload([transfer(WALLET.pubkey())]), set[str](), {"layout_relaxed"}),
        (offer(), {"transaction": "AA=="}, {"payment_malformed"}, set[str]()),
        (offer(), {"authorization": {}}, {"payment_malformed"}, set[str]()),
        (offer(asset=PAY_TO), payload(), {"asset_unknown"}, set[str]()),
    ],
)
def test_a_payment_with_a_fault(accepted: Json, made: Json, problems: set[str], notes: set[str]) -> None:
    assert found(payment(accepted, made)) == (problems, notes)


def test_a_payment_of_v1_does_not_say_what_it_answers() -> None:
    report = looked({"x402Version": 1, "scheme": "exact", "network": "solana", "payload": payload()})
    assert found(report) == (set(), {"not_examined"})


def test_a_signature_over_something_else_is_seen() -> None:
    raw = bytearray(base64.b64decode(payload()["transaction"]))
    raw[70] ^= 1
    report = payment(made={"transaction": base64.b64encode(bytes(raw)).decode()})
    assert found(report) == ({PREFIX + "signature_invalid"}, set())


def test_without_solders_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from x402kit.errors import MissingExtra
    from x402kit.networks import svm_transaction

    def missing(module: str) -> None:
        raise MissingExtra("svm", "solders")

    made = payload()
    monkeypatch.setattr(svm_transaction, "solders", missing)
    assert found(payment(made=made)) == (set(), {"not_examined"})
