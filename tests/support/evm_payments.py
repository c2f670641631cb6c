"""Payments on the local chain as a payer makes them, and the steps that the flow takes with them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from eth_account import Account

from x402kit.devnet import EvmAccount, EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.model import Authorization, Json, PaymentPayload, PaymentRequirements
from x402kit.money import Asset
from x402kit.networks import EvmOptions, EvmRail
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.evm import Transfer, digest, sign_digest
from x402kit.networks.evm_wallet import Wallet

from .nonces import MemoryNonces
from .steps import Steps

__all__ = [
    "NETWORK",
    "PAY_TO",
    "PRICE",
    "USDC",
    "Seller",
    "cancel",
    "contract_payload",
    "drain",
    "expire",
    "offer_for",
    "payload_of",
    "seller",
    "sign",
    "signed_payload",
    "submit",
]

NETWORK = "eip155:8453"
USDC = DEFAULTS[NETWORK]
PAY_TO = "0x00000000000000000000000000000000C0FfeE00"
PRICE = 10_000


def offer_for(**changes: Any) -> PaymentRequirements:
    made = PaymentRequirements(
        "exact", NETWORK, PRICE, USDC.address, PAY_TO, 300, {"name": USDC.name, "version": USDC.version}
    )
    return made._replace(**changes)


def sign(transfer: Transfer, owner: EvmAccount, asset: Asset = USDC) -> Transfer:
    """The same transfer, signed by ``owner``."""
    made = sign_digest(bytes.fromhex(owner.private_key[2:]), digest(transfer, asset))
    return transfer._replace(signature=made)


def payload_of(transfer: Transfer) -> Json:
    """A transfer as it stands in a payment header."""
    return {
        "signature": "0x" + transfer.signature.hex(),
        "authorization": {
            "from": transfer.payer,
            "to": transfer.to,
            "value": str(transfer.value),
            "validAfter": str(transfer.valid_after),
            "validBefore": str(transfer.valid_before),
            "nonce": "0x" + transfer.nonce.hex(),
        },
    }


def signed_payload(owner: EvmAccount, *, payer: str = "", asset: Asset = USDC, **changes: Any) -> Json:
    """A good payment of ``PRICE`` to ``PAY_TO`` for ten minutes, or as ``changes`` say."""
    made = Transfer(
        (payer or owner.address).lower(), PAY_TO.lower(), PRICE, 0, int(time.time()) + 600, secrets.token_bytes(32), b""
    )
    return payload_of(sign(made._replace(**changes), owner, asset))


class Seller(Steps[EvmRail]):
    """A rail with its allocator; ``accounts[0]`` settles, ``accounts[1]`` pays unless said otherwise."""

    def __init__(self, chain: EvmDevnet, rail: EvmRail, nonces: MemoryNonces) -> None:
        self.chain, self.rail, self.nonces = chain, rail, nonces
        self.offer = offer_for()

    def authorize(self, payload: Json | None = None, **changes: Any) -> Authorization:
        """A payer's payment, read and checked offline."""
        made = payload or signed_payload(self.chain.accounts[1], **changes)
        authorization = self.rail.parse(PaymentPayload(2, "exact", NETWORK, made), self.offer)
        self.rail.check(authorization, self.offer, int(time.time()))
        return authorization

    def received(self) -> int:
        """What the recipient has, atomic units."""
        return self.chain.balance_of(PAY_TO)


@asynccontextmanager
async def seller(
    chain: EvmDevnet,
    *,
    rpc: Any = None,
    confirmations: int = 0,
    wallet: Wallet | None = None,
    pay_to: str = PAY_TO,
    nonces: MemoryNonces | None = None,
    **options: Any,
) -> AsyncGenerator[Seller]:
    """A started rail on the local chain, closed at the end."""
    rail = EvmRail(
        NETWORK,
        pay_to=pay_to,
        wallet=wallet or Wallet(chain.accounts[0].private_key),
        rpc=rpc or chain.rpc_url,
        confirmations=confirmations,
        options=replace(EvmOptions(rpc_seconds=2.0), **options),
    )
    try:
        await rail.start()
        yield Seller(chain, rail, nonces or MemoryNonces())
    finally:
        await rail.close()


def contract_payload(wallet: str, owner: EvmAccount, *, signature: bytes | None = None) -> Json:
    """A payment by a wallet contract, signed by ``owner``."""
    transfer = Transfer(wallet.lower(), PAY_TO.lower(), PRICE, 0, int(time.time()) + 600, secrets.token_bytes(32), b"")
    made = sign(transfer, owner)
    return payload_of(made if signature is None else made._replace(signature=signature))


def submit(chain: EvmDevnet, data: bytes) -> str:
    """Somebody else sends calldata to the token, and it is mined; the transaction's hash."""
    sender = chain.accounts[5].address
    call = {"from": sender, "to": chain.usdc, "data": "0x" + data.hex(), "gas": hex(200_000)}
    sent: str = chain.rpc("eth_sendTransaction", call)
    chain.mine()
    return sent


def expire(chain: EvmDevnet) -> None:
    """Let the chain's clock pass every authorization of these tests."""
    chain.rpc("evm_increaseTime", 7300)
    chain.mine()


def drain(chain: EvmDevnet) -> None:
    """The payer moves all of its money away."""
    payer = chain.accounts[1]
    everything = chain.balance_of(payer.address)
    data = encode("transfer(address,uint256)", chain.accounts[4].address, everything)
    sent = chain.rpc("eth_sendTransactionSync", {"from": payer.address, "to": chain.usdc, "data": data})
    assert sent["status"] == "0x1"


def cancel(chain: EvmDevnet, payer: EvmAccount, nonce: bytes) -> None:
    """The payer cancels an authorization on chain, by its own transaction."""
    typed = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
    domain = {"name": "USD Coin", "version": "2", "chainId": chain.chain_id, "verifyingContract": chain.usdc}
    signed = Account.sign_typed_data(payer.private_key, domain, typed, {"authorizer": payer.address, "nonce": nonce})
    data = encode("cancelAuthorization(address,bytes32,bytes)", payer.address, nonce, bytes(signed.signature))
    sent = chain.rpc("eth_sendTransactionSync", {"from": chain.accounts[5].address, "to": chain.usdc, "data": data})
    assert sent["status"] == "0x1"
