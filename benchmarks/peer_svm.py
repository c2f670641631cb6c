"""The `x402` package's middleware and its own Solana facilitator in process, the chain stubbed. Runs in .venv-peers.

The facilitator decodes, checks and signs for real, as the package does it; what it asks of a node is answered at once.
"""

from __future__ import annotations

import base64
import os
from typing import Any

from peer_app import weather
from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from starlette.applications import Starlette
from starlette.routing import Route
from x402 import x402Facilitator, x402ResourceServer
from x402.http import PaymentOption
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import RouteConfig
from x402.mechanisms.svm.exact import register_exact_svm_facilitator, register_exact_svm_server

NETWORK = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
TOKEN = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
ASSOCIATED = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
MEMO = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
SELLER = Keypair()
PAYER = Keypair()


class Chain:
    """A `FacilitatorSvmSigner` whose chain agrees with everything."""

    def get_addresses(self) -> list[str]:
        return [str(SELLER.pubkey())]

    def sign_transaction(self, tx_base64: str, fee_payer: str, network: str) -> str:
        transaction = VersionedTransaction.from_bytes(base64.b64decode(tx_base64))
        signatures = list(transaction.signatures)
        signatures[0] = SELLER.sign_message(to_bytes_versioned(transaction.message))
        return base64.b64encode(bytes(VersionedTransaction.populate(transaction.message, signatures))).decode()

    def simulate_transaction(self, tx_base64: str, network: str) -> None:
        pass

    def send_transaction(self, tx_base64: str, network: str) -> str:
        return str(VersionedTransaction.from_bytes(base64.b64decode(tx_base64)).signatures[0])

    def confirm_transaction(self, signature: str, network: str) -> None:
        pass


def build() -> Starlette:
    """`/weather` for a cent on Solana."""
    facilitator = x402Facilitator()
    register_exact_svm_facilitator(facilitator, Chain(), networks=[NETWORK])
    server = x402ResourceServer(facilitator)
    register_exact_svm_server(server, networks=NETWORK)
    option = PaymentOption(scheme="exact", pay_to=str(Keypair().pubkey()), price="$0.01", network=NETWORK)
    app = Starlette(routes=[Route("/weather", weather)])
    route = RouteConfig(accepts=[option], mime_type="application/json")
    app.add_middleware(PaymentMiddlewareASGI, routes={"GET /weather": route}, server=server)
    return app


def account(owner: Pubkey, mint: Pubkey) -> Pubkey:
    return Pubkey.find_program_address([bytes(owner), bytes(TOKEN), bytes(mint)], ASSOCIATED)[0]


def pay(offer: dict[str, Any]) -> dict[str, Any]:
    """A payment as the package's client builds it, by hand: what that costs is not measured."""
    mint, owner = Pubkey.from_string(offer["asset"]), PAYER.pubkey()
    accounts = [
        AccountMeta(account(owner, mint), is_signer=False, is_writable=True),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(account(Pubkey.from_string(offer["payTo"]), mint), is_signer=False, is_writable=True),
        AccountMeta(owner, is_signer=True, is_writable=False),
    ]
    steps = [
        set_compute_unit_limit(20_000),
        set_compute_unit_price(1),
        Instruction(TOKEN, b"\x0c" + int(offer["amount"]).to_bytes(8, "little") + b"\x06", accounts),
        Instruction(MEMO, os.urandom(16).hex().encode(), []),
    ]
    message = MessageV0.try_compile(Pubkey.from_string(offer["extra"]["feePayer"]), steps, [], Hash.new_unique())
    signatures = [Signature.default(), PAYER.sign_message(to_bytes_versioned(message))]
    transaction = base64.b64encode(bytes(VersionedTransaction.populate(message, signatures))).decode()
    return {"x402Version": 2, "accepted": offer, "payload": {"transaction": transaction}}
