"""One till for each chain, so that what must hold on every network is tested by one case (docs/adding-a-network.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from x402kit.devnet import EvmDevnet, SvmDevnet
from x402kit.model import Json
from x402kit.networks import Evm, Solana, SvmOptions
from x402kit.networks.port import Rail

from .payments import sign
from .svm_payments import MINT, encoded, keypair, signed, standard

__all__ = ["HINTS", "Till", "evm_till", "svm_till"]

HINTS = SvmOptions(hint_seconds=0.5)
"""Here a block takes 50 ms, and a blockhash lives for some seven seconds."""


@dataclass(frozen=True)
class Till:
    """A rail on a chain; ``pay`` signs what an offer asks for, or other terms: ``amount``, ``pay_to``."""

    network: str
    rail: Rail
    pay: Callable[..., Json]
    received: Callable[[], int]
    payer: str


def evm_till(chain: EvmDevnet, *, rpc: str = "", **settings: Any) -> Till:
    """Paid to an address that nobody has."""
    pay_to = "0x1000000000000000000000000000000000000402"
    network = f"eip155:{chain.chain_id}"
    rail = Evm(network, pay_to=pay_to, key=chain.accounts[0].private_key, rpc=rpc or chain.rpc_url, **settings)
    before = chain.balance_of(pay_to)
    key = bytes.fromhex(chain.accounts[1].private_key[2:])

    def pay(entry: Json, *, amount: int | None = None, pay_to: str = "") -> Json:
        value = int(entry["amount"]) if amount is None else amount
        return sign(entry, key=key, value=value, to=(pay_to or entry["payTo"]).lower())

    return Till(network, rail, pay, lambda: chain.balance_of(pay_to) - before, chain.accounts[1].address)


def svm_till(chain: SvmDevnet, *, rpc: str = "", pay_to: str = "", **settings: Any) -> Till:
    """Paid to a fresh wallet that has a token account, or to one that must have it already."""
    to = pay_to or str(Keypair().pubkey())
    if not pay_to:
        chain.set_tokens(to, 0)
    rail = Solana(pay_to=to, key=chain.accounts[0].secret_key, rpc=rpc or chain.rpc_url, **settings)
    payer = keypair(chain.accounts[1])

    def pay(entry: Json, *, amount: int | None = None, pay_to: str = "") -> Json:
        found = chain.rpc("getLatestBlockhash", {"commitment": "processed"})["value"]["blockhash"]
        steps = standard(
            payer.pubkey(),
            pay_to=pay_to or entry["payTo"],
            amount=int(entry["amount"]) if amount is None else amount,
            mint=Pubkey.from_string(entry["asset"]),
        )
        fee_payer = Pubkey.from_string(entry["extra"]["feePayer"])
        return encoded(signed(fee_payer, steps, [payer], Hash.from_string(found)))

    assert chain.usdc == str(MINT)
    return Till(chain.network, rail, pay, lambda: chain.balance_of(to), str(payer.pubkey()))
