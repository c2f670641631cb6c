"""The gate's own headers: the receipt as the protocol's writer has it, and what is kept of an answer for a replay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from x402kit.asgi.answers import pack_headers, replay
from x402kit.model import Claim, SettlementResponse
from x402kit.protocols.x402 import decode_header, receipt_header, settlement_json

TEXT = st.text(max_size=20)  # without surrogates


@given(st.sampled_from(["eip155:8453", "eip155:999999"]), TEXT, TEXT, st.integers(0, 2**63 - 1), st.booleans())
def test_a_receipt_says_what_the_wire_format_says(
    network: str, transaction: str, payer: str, amount: int, v1: bool
) -> None:
    made = receipt_header(network, transaction, payer, amount, v1=v1)
    whole = SettlementResponse(True, network, transaction, payer, amount)
    assert decode_header(made.decode()) == settlement_json(whole, v1=v1)


def _claim(headers: list[tuple[bytes, bytes]]) -> Claim:
    made = Claim("evm:1", "served", b"", b"", "r", "eip155:8453", "0xa", "0xb", "0xc", 5, 0, 0, 0)
    return made._replace(status=201, headers=pack_headers(headers), body=b"kept")


def test_kept_headers_come_back_in_their_order_and_as_often_as_they_were() -> None:
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-empty", b""), (b"payment-response", b"r")]
    again = replay(_claim(headers), None)
    assert again.headers == [*headers, (b"payment-replayed", b"true")]
    assert (again.status, again.body) == (201, b"kept")


def test_a_header_with_a_nul_is_not_kept_and_spoils_no_other() -> None:
    headers = [(b"x-a", b"1"), (b"x-bad", b"v\0set-cookie\0stolen"), (b"payment-response", b"r")]
    assert replay(_claim(headers), None).headers[:2] == [(b"x-a", b"1"), (b"payment-response", b"r")]
    assert pack_headers([]) == b""
