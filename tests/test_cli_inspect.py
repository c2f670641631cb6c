"""`x402kit inspect`: every fault has its code, and a good value has none."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from tests.support.commands import on_terminal, run
from tests.support.paid_server import PAY_TO, entry, v1_entry
from tests.support.payments import PAYER, Payment, pay
from tests.support.prepaid_shop import opened
from tests.support.serving import serving
from x402kit.cli import main
from x402kit.cli.inspect import look_at_value
from x402kit.cli.report import Report
from x402kit.model import Json
from x402kit.networks import evm
from x402kit.networks.assets import DEFAULTS
from x402kit.protocols.encoding import b64encode, dump_json
from x402kit.protocols.x402 import encode_header

HALF = evm.HALF_ORDER
ORDER = 2 * HALF + 1
SEPOLIA = DEFAULTS["eip155:84532"]
RESOURCE = {"url": "https://seller.example/a", "description": "words"}


def codes(report: Report) -> list[str]:
    return sorted({finding.code for finding in report.problems})


def notes(report: Report) -> set[str]:
    return {finding.code for finding in report.notes}


def challenge(*entries: Json, **changes: Any) -> Json:
    made = {"x402Version": 2, "error": "", "resource": RESOURCE, "accepts": list(entries), **changes}
    return {key: value for key, value in made.items() if value is not None}


def looked(value: Json | str) -> Report:
    return look_at_value(value if isinstance(value, str) else encode_header(value))


def with_extra(**changes: Any) -> Json:
    extra = {"name": "USD Coin", "version": "2", **changes}
    return entry(extra={key: value for key, value in extra.items() if value is not None})


# Challenges


def test_a_good_challenge_is_told_in_words_and_nothing_is_wrong() -> None:
    report = looked(challenge(entry(), error="Payment required"))
    assert (report.kind, report.ok, report.notes) == ("payment-required", True, [])
    words = "\n".join(report.lines)
    assert "0.010000 USDC on base (eip155:8453)" in words
    assert PAY_TO in words
    assert "https://seller.example/a" in words
    assert "Payment required" in words


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (challenge(), ["no_offers"]),
        (challenge(entry(), x402Version=3), ["version_unknown"]),
        (challenge(entry(amount=None)), ["offer_malformed"]),
        (challenge(entry(amount="1", maxAmountRequired="2")), ["offer_malformed"]),
        (challenge({**entry(), "payTo": 5}), ["offer_malformed"]),
        (challenge(entry(amount="0")), ["amount_zero"]),
        (challenge(entry(maxTimeoutSeconds=5)), ["timeout_short"]),
        (challenge(entry(asset=PAY_TO)), ["asset_unknown", "pays_the_token"]),
        (challenge(entry(asset=PAYER)), ["asset_unknown"]),
        (challenge(entry(network="eip155:5")), ["network_unknown"]),
        (challenge(entry(network="base")), ["network_name"]),
        (challenge(with_extra(name=None)), ["domain_missing"]),
        (challenge(entry(extra=None)), ["domain_missing"]),
        (challenge(with_extra(name="USDC")), ["domain_mismatch"]),
        (challenge(with_extra(decimals=18)), ["decimals_mismatch"]),
        (challenge(with_extra(totalUsd="0.02")), ["total_mismatch"]),
        (challenge(with_extra(totalUsd="1e-2")), ["total_mismatch"]),
        (challenge(entry(payTo=PAY_TO.replace("F", "f", 1))), ["checksum_wrong"]),
        (challenge(entry(payTo="0x12")), ["address_invalid"]),
        (
            challenge(
                entry(),
                entry(network=SEPOLIA.network, asset=SEPOLIA.address, extra={"name": "USDC", "version": "2"}),
            ),
            ["mixed_networks"],
        ),
        ({"hello": "world"}, ["kind_unknown"]),
    ],
)
def test_faults_of_a_challenge(value: Json, expected: list[str]) -> None:
    assert codes(looked(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (challenge(entry(payTo=PAY_TO.lower())), {"checksum_missing"}),
        (challenge(entry(scheme="upto")), {"scheme_other"}),
        (challenge(with_extra(assetTransferMethod="permit2")), {"method_other"}),
        (challenge(entry(maxTimeoutSeconds=86_400)), {"timeout_long"}),
        (challenge(entry(), resource=None), {"resource_missing"}),
        (challenge(entry(network="cosmos:x", asset="mint", payTo="you")), {"not_examined"}),
        (
            challenge(entry(network=SEPOLIA.network, asset=SEPOLIA.address, extra={"name": "USDC", "version": "2"})),
            {"testnet"},
        ),
        (challenge(with_extra(totalUsd=0.01)), set[str]()),
    ],
)
def test_what_is_worth_knowing_is_no_fault(value: Json, expected: set[str]) -> None:
    report = looked(value)
    assert (report.problems, notes(report)) == ([], expected)


def test_a_challenge_of_v1_is_read_too() -> None:
    report = look_at_value(json.dumps({"x402Version": 1, "error": "x", "accepts": [v1_entry()]}))
    assert (report.kind, report.ok) == ("payment-required", True)


# Payments


def test_a_good_payment_is_told_in_words() -> None:
    report = looked(pay(entry()).v2())
    assert (report.kind, report.problems, report.notes) == ("payment", [], [])
    words = "\n".join(report.lines)
    assert "0.010000 USDC" in words
    assert "signed   by from" in words
    assert ", with its quote" in words


def far(seconds: int) -> dict[str, int]:
    return {"valid_before": int(time.time()) + seconds}


def signature(payment: Payment, change: Callable[[bytes], bytes]) -> str:
    raw = bytes.fromhex(payment.payload["signature"][2:])
    return payment.v2(payload={**payment.payload, "signature": "0x" + change(raw).hex()})


def high(raw: bytes) -> bytes:
    """The other signature over the same digest (EIP-2)."""
    s = ORDER - int.from_bytes(raw[32:64], "big")
    return raw[:32] + s.to_bytes(32, "big") + bytes((55 - raw[64],))


def test_a_payment_whose_times_are_wrong() -> None:
    assert codes(looked(pay(entry(), **far(-5)).v2())) == ["expired"]
    assert codes(looked(pay(entry(), **far(2)).v2())) == ["expires_too_soon"]
    assert codes(looked(pay(entry(), **far(86_400)).v2())) == ["valid_too_long"]
    assert codes(looked(pay(entry(), valid_before=2**63).v2())) == ["valid_too_long"]
    assert codes(looked(pay(entry(), valid_after=int(time.time()) + 99).v2())) == ["not_yet_valid"]


def test_a_payment_that_does_not_fit_its_offer() -> None:
    assert codes(looked(pay(entry(), value=9_999).v2())) == ["value_mismatch"]
    payment = pay(entry())
    elsewhere = payment.v2(payload=payment.spelled(None, to=SEPOLIA.address))
    assert codes(looked(elsewhere)) == ["recipient_mismatch", "signature_not_by_from"]
    assert codes(looked(pay(entry(payTo=PAYER)).v2())) == ["pays_itself"]
    assert codes(looked(pay(with_extra(name="USDC")).v2())) == ["domain_mismatch"]
    assert codes(looked(pay(entry(asset=PAYER)).v2())) == ["asset_unknown"]
    assert codes(looked(pay(entry(network="eip155:5")).v2())) == ["network_unknown"]


def test_B04_a_signature_is_looked_at() -> None:
    payment = pay(entry())
    assert codes(looked(signature(payment, high))) == ["signature_high_s"]
    assert codes(looked(signature(payment, lambda raw: raw[:64] + b"\x1d"))) == ["signature_v"]
    assert codes(looked(signature(payment, lambda raw: raw[:60]))) == ["signature_short"]
    assert codes(looked(signature(payment, lambda raw: bytes(64) + raw[64:]))) == ["signature_invalid"]
    assert codes(looked(pay(entry(), key=b"\x01" * 32, payer=PAYER.lower()).v2())) == ["signature_not_by_from"]
    assert codes(looked(pay(entry(), asset=SEPOLIA).v2())) == ["signature_not_by_from"]


def test_a_contracts_signature_is_its_chains_to_judge() -> None:
    payment = pay(entry())
    assert notes(looked(signature(payment, lambda raw: raw + raw))) == {"signature_of_contract"}
    assert notes(looked(signature(payment, lambda raw: raw + evm.ERC6492_SUFFIX))) == {"signature_wrapped"}


def test_a_malformed_payment() -> None:
    payment = pay(entry())
    assert codes(looked({"x402Version": 2, "payload": 1})) == ["payment_malformed"]
    for fields in ({"nonce": "0x12"}, {"value": "010"}, {"to": None}):
        assert codes(looked(payment.v2(payload=payment.spelled(None, **fields)))) == ["payment_malformed"]


def test_payments_of_other_dialects() -> None:
    payment = pay(entry())
    assert notes(looked(payment.v1())) == {"asset_assumed"}
    assert looked(payment.v1()).ok
    assert looked(payment.katana()).ok
    assert notes(looked(payment.venice())) == {"accepted_missing", "asset_assumed"}
    assert notes(looked(payment.v2(payload={"permit2Authorization": {}}))) == {"not_examined"}
    lower = payment.v2(payload=payment.spelled(None, **{"from": PAYER.lower()}))
    assert notes(looked(lower)) == {"checksum_missing"}


# Receipts


def receipt(**changes: Any) -> Json:
    made = {"success": True, "transaction": "0x" + "ab" * 32, "network": "eip155:8453", "payer": PAYER, "amount": "5"}
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def test_receipts() -> None:
    good = looked(receipt())
    assert (good.kind, good.ok, good.notes) == ("payment-response", True, [])
    assert "0.000005 USDC" in "\n".join(good.lines)
    assert looked(receipt(network="base", amount=None)).ok
    assert looked(receipt(network="solana:x", transaction="sig", payer="you")).ok
    assert codes(looked(receipt(success=False, errorReason="insufficient_funds"))) == ["payment_failed"]
    assert codes(looked(receipt(transaction=""))) == ["transaction_missing"]
    assert codes(looked(receipt(success="yes"))) == ["receipt_malformed"]
    assert notes(looked(receipt(network="eip155:84532"))) == {"testnet"}


# The coat that a value comes in


def test_the_ways_in_which_a_value_is_given() -> None:
    text = pay(entry()).v2()
    for given in (
        text,
        f"  {text}\n",
        f"PAYMENT-SIGNATURE: {text}",
        f"> x-payment: {text}",
        text.rstrip("="),
        text.replace("+", "-").replace("/", "_"),
        base64.b64decode(text).decode(),
    ):
        report = look_at_value(given)
        assert (report.kind, report.problems) == ("payment", [])


def test_A12_what_the_strict_parser_refuses_is_said_and_yet_explained() -> None:
    text = pay(entry()).v2()
    raw = base64.b64decode(text)
    doubled = raw[:-1] + b',"x402Version":2}'
    floating = raw.replace(b'"x402Version":2', b'"x402Version":2,"n":1.5')
    for broken, expected in (
        (text[:20] + "\n" + text[20:], ["base64_not_canonical"]),
        (text[:20] + "*" + text[20:], ["base64_not_canonical"]),
        (b64encode(doubled), ["json_not_strict"]),
        (b64encode(floating), ["json_not_strict"]),
    ):
        report = look_at_value(broken)
        assert (report.kind, codes(report)) == ("payment", expected)
        assert any("signed   by from" in line for line in report.lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["empty"]),
        ("X-PAYMENT: ", ["empty"]),
        (b64encode(b"[1]"), ["json_not_strict"]),
        ("A", ["base64_invalid"]),
        ("hello world", ["base64_invalid"]),
        ("hello", ["base64_invalid"]),
        ("word", ["json_invalid"]),
        (b64encode(b"{not json"), ["json_invalid"]),
        ("[1]", ["base64_invalid"]),
        ('{"a":' * 9_000, ["json_invalid"]),
        (b64encode(dump_json(challenge(entry(), error="x" * 20_000))), ["header_too_large"]),
    ],
)
def test_K01_values_that_are_none(text: str, expected: list[str]) -> None:
    assert codes(look_at_value(text)) == expected


def test_control_codes_in_a_value_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    value = encode_header(challenge(entry(), error="\x1b[2Jgone", resource={"url": "\x07", "description": "\x1b"}))
    shown = on_terminal("inspect", value)
    assert shown.status == 0
    assert "gone" in shown.out
    assert "\x1b[2J" not in shown.out
    assert "\x07" not in shown.out


# The command


def test_on_a_terminal_it_is_told_in_words_and_in_a_pipe_as_json() -> None:
    value = encode_header(challenge(entry(asset=PAYER)))
    shown = on_terminal("inspect", value)
    assert shown.status == 1
    assert "unknown asset" in shown.out
    assert "[asset_unknown]" in shown.out
    piped = run("inspect", "-", stdin=value.encode())
    assert piped.status == 1
    made = json.loads(piped.out)
    assert (made["kind"], made["ok"]) == ("payment-required", False)
    assert [problem["code"] for problem in made["problems"]] == ["asset_unknown"]
    assert made["decoded"]["accepts"][0]["asset"] == PAYER
    assert on_terminal("inspect", "--json", value).out == piped.out


def test_the_exit_status_says_whether_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", encode_header(challenge(entry()))]) == 0
    assert main(["inspect", "nonsense"]) == 1
    assert main(["inspect", "http://127.0.0.1:1/"]) == 2
    capsys.readouterr()


# URLs


def sign_in(domain: str) -> Response:
    """A 402 whose challenge for a wallet proof is for that domain."""
    extensions = {"sign-in-with-x": {"info": {"domain": domain, "uri": f"http://{domain}/signs"}}}
    header = encode_header(challenge(entry(), extensions=extensions))
    return Response(b"", 402, {"payment-required": header, "cache-control": "no-store"})


class Shop:
    """Answers with what the path names."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        store = {"cache-control": "no-store"}
        header = {"payment-required": encode_header(challenge(entry())), **store}
        v1 = json.dumps({"x402Version": 1, "error": "", "accepts": [v1_entry()]})
        other = json.dumps({"x402Version": 1, "error": "", "accepts": [v1_entry(maxAmountRequired="1")]})
        broken = json.dumps({"x402Version": 9, "accepts": []})
        answers = {
            "/good": Response(v1, 402, header, "application/json"),
            "/header": Response(b"", 402, header),
            "/v1": Response(v1, 402, store, "application/json"),
            "/cacheable": Response(b"", 402, {"payment-required": header["payment-required"]}),
            "/differs": Response(other, 402, header, "application/json"),
            "/broken": Response(broken, 402, header, "application/json"),
            "/other": Response("pay at the desk", 402, store),
            "/json": Response('{"detail": "pay"}', 402, store),
            "/big": Response("{" + "x" * 200_000, 402, store),
            "/free": Response("free"),
            "/signs": sign_in(request.headers["host"]),
            "/elsewhere": sign_in("shop.example"),
            "/odd": Response(b"", 402, {**store, "payment-required": encode_header(challenge(entry(), extensions=[]))}),
        }
        if request.method == "POST":
            assert (await request.body(), request.headers["x-a"], request.headers["content-type"]) == (
                b'{"n": 2}',
                "b",
                "application/json",
            )
        await answers[request.url.path](scope, receive, send)


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    with serving(Shop(), lifespan=False) as url:
        yield url


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Json, list[str]]:
    status = main(["inspect", "--allow-insecure", *arguments])
    made = json.loads(capsys.readouterr().out)
    return status, made, [problem["code"] for problem in made["problems"]]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/good", []),
        ("/header", []),
        ("/v1", []),
        ("/cacheable", ["cacheable"]),
        ("/differs", ["body_differs"]),
        ("/broken", ["body_malformed"]),
        ("/other", ["no_challenge"]),
        ("/json", ["kind_unknown", "no_challenge"]),
        ("/big", ["no_challenge"]),
        ("/free", ["not_402"]),
        ("/signs", []),
        ("/elsewhere", ["proof_domain"]),
        ("/odd", []),
    ],
)
def test_a_url_is_asked_once_without_a_payment(
    shop: str, capsys: pytest.CaptureFixture[str], path: str, expected: list[str]
) -> None:
    status, made, found = asked(capsys, shop + path)
    assert found == expected
    assert status == (1 if expected else 0)
    assert made["url"] == shop + path


def test_a_url_is_asked_as_curl_would(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, made, _ = asked(capsys, shop + "/good", "-j", '{"n": 2}', "-H", "X-A: b")
    assert (status, made["kind"]) == (0, "payment-required")


def test_a_url_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, found = asked(capsys, "http://127.0.0.1:9/")
    assert (status, found) == (1, ["unreachable"])


def test_a_url_on_a_terminal(shop: str) -> None:
    shown = on_terminal("inspect", "--allow-insecure", shop + "/good")
    assert shown.status == 0
    assert f"{shop}/good answered 402" in shown.out
    assert "Nothing is wrong with it." in shown.out


def test_a_wallet_service_is_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    with opened() as prepaid:
        status, made, found = asked(capsys, prepaid.wallet)
        assert (status, made["kind"], found) == (0, "wallet-service", [])
        assert made["decoded"]["networks"][0]["network"] == "eip155:8453"
        shown = on_terminal("inspect", "--allow-insecure", prepaid.wallet)
        assert "A wallet service" in shown.out
        assert "takes top-ups on base (eip155:8453)" in shown.out
        assert f"x402kit wallet {prepaid.wallet} info says more" in shown.out
        assert asked(capsys, prepaid.url + "/free")[2] == ["not_402"]
