"""Payments on the local Solana as a payer makes them, and the steps that the flow takes with them."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.token.associated import get_associated_token_address
from solders.transaction import VersionedTransaction

from x402kit.devnet import SvmAccount, SvmDevnet
from x402kit.model import Authorization, Json, PaymentPayload, PaymentRequirements
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.svm_chain import SvmRail
from x402kit.networks.svm_options import SvmOptions
from x402kit.networks.svm_transaction import decode, find_transfer
from x402kit.networks.svm_wallet import SvmWallet

from .nonces import MemoryNonces
from .steps import Steps

__all__ = [
    "MEMO",
    "MINT",
    "NETWORK",
    "PAY_TO",
    "PRICE",
    "TOKEN",
    "USDC",
    "SvmSeller",
    "compute",
    "encoded",
    "keypair",
    "offer_for",
    "signed",
    "svm_seller",
    "transfer",
    "transferred",
]

NETWORK = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
USDC = DEFAULTS[NETWORK]
MINT = Pubkey.from_string(USDC.address)
TOKEN = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
TOKEN_2022 = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
ASSOCIATED = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
MEMO = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
LIGHTHOUSE = Pubkey.from_string("L2TExMFKdjpN9kozasaurPirfHy9P8sbXoAN1qA3S95")
SYSTEM = Pubkey.default()
PAY_TO = str(Keypair.from_seed(b"a recipient who never signs ....").pubkey())
PRICE = 10_000


def keypair(account: SvmAccount) -> Keypair:
    return Keypair.from_base58_string(account.secret_key)


def offer_for(fee_payer: object, **changes: Any) -> PaymentRequirements:
    made = PaymentRequirements("exact", NETWORK, PRICE, USDC.address, PAY_TO, 300, {"feePayer": str(fee_payer)})
    return made._replace(**changes)


def owned_by(owner: Pubkey, mint: Pubkey = MINT, program: Pubkey = TOKEN) -> Pubkey:
    """The owner's token account."""
    return get_associated_token_address(owner, mint, program)


def compute(units: int = 20_000, price: int = 1) -> list[Instruction]:
    return [set_compute_unit_limit(units), set_compute_unit_price(price)]


def memo(text: str = "") -> Instruction:
    return Instruction(MEMO, (text or secrets.token_hex(16)).encode(), [])


def transfer(
    payer: Pubkey,
    pay_to: str = PAY_TO,
    amount: int = PRICE,
    *,
    mint: Pubkey = MINT,
    program: Pubkey = TOKEN,
    source: Pubkey | None = None,
    destination: Pubkey | None = None,
    decimals: int = 6,
) -> Instruction:
    """TransferChecked, put together by hand."""
    to = destination or owned_by(Pubkey.from_string(pay_to), mint, program)
    accounts = [
        AccountMeta(source or owned_by(payer, mint, program), is_signer=False, is_writable=True),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(to, is_signer=False, is_writable=True),
        AccountMeta(payer, is_signer=True, is_writable=False),
    ]
    return Instruction(program, b"\x0c" + amount.to_bytes(8, "little") + bytes((decimals,)), accounts)


def creation(funder: Pubkey, pay_to: str = PAY_TO, mint: Pubkey = MINT, program: Pubkey = TOKEN) -> Instruction:
    """The idempotent creation of the recipient's token account."""
    owner = Pubkey.from_string(pay_to)
    accounts = [
        AccountMeta(funder, is_signer=True, is_writable=True),
        AccountMeta(owned_by(owner, mint, program), is_signer=False, is_writable=True),
        AccountMeta(owner, is_signer=False, is_writable=False),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(SYSTEM, is_signer=False, is_writable=False),
        AccountMeta(program, is_signer=False, is_writable=False),
    ]
    return Instruction(ASSOCIATED, b"\x01", accounts)


def standard(payer: Pubkey, **changes: Any) -> list[Instruction]:
    """What standard clients send (wire.md 3.5)."""
    return [*compute(), transfer(payer, **changes), memo()]


def signed(
    fee_payer: Pubkey, instructions: Sequence[Instruction], signers: Sequence[Keypair], blockhash: Hash
) -> VersionedTransaction:
    """A transaction signed by all but the fee payer, whose slot stays empty."""
    message = MessageV0.try_compile(fee_payer, list(instructions), [], blockhash)
    return co_signed(message, signers)


def co_signed(message: Any, signers: Sequence[Keypair]) -> VersionedTransaction:
    data = to_bytes_versioned(message)
    by = {each.pubkey(): each for each in signers}
    keys = message.account_keys[: message.header.num_required_signatures]
    made = [by[key].sign_message(data) if key in by else Signature.default() for key in keys]
    return VersionedTransaction.populate(message, made)


def encoded(transaction: VersionedTransaction) -> Json:
    return {"transaction": base64.b64encode(bytes(transaction)).decode()}


def transferred(chain: SvmDevnet, transaction: str) -> int:
    """What a transaction that succeeded has moved, by its own bytes."""
    options = {"encoding": "base64", "maxSupportedTransactionVersion": 0, "commitment": "confirmed"}
    found = chain.rpc("getTransaction", transaction, options)
    assert found["meta"]["err"] is None
    moved = find_transfer(decode(base64.b64decode(found["transaction"][0])).instructions)
    assert moved is not None
    return moved.amount


class SvmSeller(Steps[SvmRail]):
    """A rail with an allocator; ``accounts[0]`` settles, ``accounts[1]`` pays unless said otherwise."""

    def __init__(self, chain: SvmDevnet, rail: SvmRail) -> None:
        self.chain, self.rail, self.nonces = chain, rail, MemoryNonces()
        self.offer = offer_for(rail.fee_payer, pay_to=rail.pay_to, asset=rail.asset.address)
        self.fee_payer = Pubkey.from_string(rail.fee_payer)
        self.payer = keypair(chain.accounts[1])

    def blockhash(self) -> Hash:
        """The newest."""
        found = self.chain.rpc("getLatestBlockhash", {"commitment": "processed"})["value"]["blockhash"]
        return Hash.from_string(found)

    def payload(self, instructions: Sequence[Instruction] | None = None, payer: Keypair | None = None) -> Json:
        """A good payment of ``PRICE``, or of these instructions."""
        by = payer or self.payer
        steps = standard(by.pubkey(), pay_to=self.rail.pay_to) if instructions is None else instructions
        return encoded(signed(self.fee_payer, steps, [by], self.blockhash()))

    def parse(self, payload: Json) -> Authorization:
        return self.rail.parse(PaymentPayload(2, "exact", NETWORK, payload), self.offer)

    def authorize(self, payload: Json | None = None, payer: Keypair | None = None) -> Authorization:
        """A payer's payment, read and checked offline."""
        authorization = self.parse(payload or self.payload(payer=payer))
        self.rail.check(authorization, self.offer, int(time.time()))
        return authorization

    def received(self) -> int:
        """What the recipient has, atomic units."""
        return self.chain.balance_of(self.rail.pay_to, self.rail.asset.address)


@asynccontextmanager
async def svm_seller(
    chain: SvmDevnet,
    *,
    rpc: Any = None,
    confirmations: int = 0,
    wallet: SvmWallet | None = None,
    pay_to: str = "",
    account: bool = True,
    fees: Any = None,
    asset: Any = None,
    **options: Any,
) -> AsyncGenerator[SvmSeller]:
    """A started rail on the local chain, closed at the end; paid to a fresh wallet, with a token account or without."""
    to = pay_to or str(Keypair().pubkey())
    rail = SvmRail(
        NETWORK,
        pay_to=to,
        wallet=wallet or SvmWallet(chain.accounts[0].secret_key),
        rpc=rpc or chain.rpc_url,
        confirmations=confirmations,
        fees=fees,
        asset=asset,
        options=replace(SvmOptions(rpc_seconds=2.0, poll_seconds=(0.01, 0.1), resend_seconds=0.2), **options),
    )
    if account and asset is None:
        chain.set_tokens(to, 0)
    try:
        await rail.start()
        yield SvmSeller(chain, rail)
    finally:
        await rail.close()
