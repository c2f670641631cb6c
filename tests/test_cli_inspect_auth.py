"""`x402kit inspect` of L402's and ``Payment``'s challenges: what they ask for, and what is wrong with them."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.auth_seller import AuthSeller
from tests.support.auth_seller import seller as seller
from tests.support.auth_seller import server as server
from tests.support.commands import on_terminal, run
from x402kit.cli.explain_auth import explain_auth
from x402kit.cli.inspect import look_at_value
from x402kit.cli.report import Report
from x402kit.networks.lightning_port import REGTEST
from x402kit.protocols.payment_auth import PaymentChallenge, challenge_header, request_text
from x402kit.protocols.payment_methods import evm_request, solana_request

USDC, SELLER = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
MINT, PROGRAM = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"
EVM = evm_request(10_000, USDC, SELLER, 8453, 6)
SOLANA = solana_request(10_000, MINT, PROGRAM, network="mainnet", decimals=6, token_program=PROGRAM)


def found(report: Report) -> tuple[set[str], set[str]]:
    return {each.code for each in report.problems}, {each.code for each in report.notes}


def looked(*lines: str, now: int = 0) -> Report:
    report = Report()
    explain_auth(lines, report, now or int(time.time()))
    return report


def charge(method: str, request: dict[str, object] | str, **changes: str) -> str:
    text = request if isinstance(request, str) else request_text(request)
    return challenge_header(PaymentChallenge("id", "seller", method, "charge", text, **changes)).decode()


def test_a_url_that_asks_for_lightning_alone_is_told_in_words(seller: AuthSeller) -> None:
    shown = on_terminal("inspect", "--allow-insecure", seller.url + "/weather")
    assert shown.status == 1
    assert "L402     21.000 sat on lightning regtest" in shown.out
    assert "Payment  21.000 sat on lightning regtest" in shown.out
    assert f"payment hash {seller.invoices[0]}, ends in " in shown.out
    assert shown.out.count(" wrong ") == 1  # this seller lets its challenges be stored
    assert "[cacheable]" in shown.out


def test_a_url_that_asks_for_lightning_alone_as_json(seller: AuthSeller) -> None:
    seller.caveats = ("services=a:0",)
    said = json.loads(run("inspect", "--allow-insecure", seller.url + "/weather").out)
    assert (said["kind"], said["decoded"], said["status"]) == ("www-authenticate", None, 402)
    token, payment = said["challenges"]
    assert (token["scheme"], token["caveats"], token["invoice"]) == ("L402", ["services=a:0"], seller.bolt11[0])
    assert (payment["kind"], payment["request"]["amount"]) == ("lightning/charge", "21")


@pytest.mark.parametrize("before", ["", "WWW-Authenticate: ", "< www-authenticate: "])
def test_a_line_of_a_402_is_enough(seller: AuthSeller, before: str) -> None:
    seller.speaks = ("lsat", "payment")
    for line in seller.challenges():
        report = look_at_value(before + line)
        assert (report.kind, found(report)) == ("www-authenticate", (set(), set()))


def test_charges_on_chains() -> None:
    report = looked(charge("evm", EVM), charge("solana", SOLANA, expires="2100-01-01T00:00:00Z"))
    assert found(report) == (set(), set())
    text = "\n".join(report.lines)
    assert f"Payment  0.010000 USDC on base (eip155:8453) to {SELLER}" in text
    assert "evm/charge; without an end" in text
    assert f"to {PROGRAM}" in text
    assert "solana/charge; ends in " in text


def test_what_does_not_hold_together_is_wrong(seller: AuthSeller) -> None:
    (invoice, payment_hash), (other, other_hash) = seller.make(), seller.make()
    mixed = looked(seller.line_l402(invoice, other_hash), seller.line_payment(other, payment_hash))
    assert found(mixed) == ({"hash_mismatch"}, {"invoices_differ"})
    seller.amount = 22_000
    assert found(looked(seller.line_payment(invoice, payment_hash)))[0] == {"amount_mismatch"}
    seller.amount, seller.lie = 21_000, lambda request: request["methodDetails"].update(network="mainnet")
    assert found(looked(seller.line_payment(invoice, payment_hash)))[0] == {"network_mismatch"}
    late = looked(seller.line_l402(invoice, payment_hash), now=int(time.time()) + 599)
    assert found(late)[0] == {"expired"}
    assert found(looked(charge("evm", EVM, expires="2020-01-01T00:00:00Z")))[0] == {"expired"}


def test_an_invoice_without_an_amount_is_wrong(seller: AuthSeller) -> None:
    seller.amount = 0
    assert found(looked(seller.line_l402(*seller.make())))[0] == {"amount_missing"}


@pytest.mark.parametrize(
    ("line", "problems", "notes"),
    [
        ('L402 macaroon="x"', {"l402_malformed"}, set[str]()),
        ('LSAT macaroon="AAAA", invoice="lnbcrt1abc"', {"invoice_malformed"}, {"token_opaque"}),
        ('Payment id="x"', {"payment_malformed"}, set[str]()),
        (charge("evm", {"amount": "1"}), {"payment_malformed"}, set[str]()),
        (charge("evm", "%%"), {"payment_malformed"}, set[str]()),
        (charge("evm", EVM, expires="soon"), {"payment_malformed"}, set[str]()),
        (charge("card", {}), set[str](), {"method_other"}),
    ],
)
def test_what_can_t_be_read_is_said(line: str, problems: set[str], notes: set[str]) -> None:
    assert found(look_at_value(line)) == (problems, notes)


def test_tokens_of_other_kinds_are_only_noted(seller: AuthSeller) -> None:
    seller.speaks = ("opaque",)
    assert found(looked(*seller.challenges())) == (set(), {"token_opaque"})
    assert REGTEST in looked(*seller.challenges()).lines[0]
