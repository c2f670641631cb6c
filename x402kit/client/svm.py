"""The payer's half of ``exact`` on Solana (wire.md 3.5): a transaction that moves its own tokens, and nothing else.

    SetComputeUnitLimit, SetComputeUnitPrice, TransferChecked, Memo

Before the transfer stands the recipient's account's creation where the offer says that it is missing and its price
holds the rent; the fee payer funds it, the payer has no part in it. A payment by ``solana/charge`` has a memo where the
challenge asks for one, and else none. Nothing comes from the offer but the recipient, the amount, who pays the fees,
the memo's text and a recent blockhash; mint, decimals and program are our own table's (M05). Loaded, and solders with
it, where a payer has a Solana wallet.
"""

from __future__ import annotations

import base64
import inspect
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import ConfigError, NothingPayable, PayerError
from ..model import Json, PaymentRequirements
from ..money import Asset
from ..networks.svm import VALID_SECONDS, payment_id
from ..networks.svm_ready import token_program
from ..networks.svm_transaction import (
    ASSOCIATED,
    COMPUTE_BUDGET,
    MEMO,
    SYSTEM,
    address_bytes,
    address_text,
    decode,
    is_signed,
    solders,
    token_account,
)
from ..networks.svm_wallet import SvmKey, SvmSigner, SvmWallet
from ..protocols import payment_auth
from ..protocols.base58 import b58decode
from ..protocols.x402 import decode_header

__all__ = ["SolanaTerms", "SolanaWallet", "is_program_of", "prepare", "read_terms", "receipt_problem"]

MEMO_MAX: Final = 256
UNITS: Final = 20_000
UNITS_WITH_CREATION: Final = 60_000
UNITS_SPREAD: Final = 4096
PRICES_SPREAD: Final = 256
"""Micro-lamports a unit: with the largest of both spreads less than 20 lamports, which the fee payer pays."""
U64: Final = 1 << 64


class SolanaTerms(NamedTuple):
    """What an offer says beyond its amount. ``blockhash`` is empty where the payer asks a node for one.

    ``bare``: Katana's dialect, where the recipient pays the fees without the offer's saying so (wire.md 1.6 row 5).
    """

    fee_payer: bytes
    memo: str
    blockhash: bytes
    creates: bool
    bare: bool
    is_charge: bool = False


def is_program_of(asset: Asset, named: str) -> bool:
    """Whether a token program that a seller may name is that of the mint."""
    return not named or named == address_text(token_program(asset, frozenset()))


def read_terms(terms: PaymentRequirements, asset: Asset, *, bare: bool) -> SolanaTerms | None:
    """None for an offer that can't be paid. ``bare``: whether the seller is known to speak Katana's dialect."""
    named = terms.extra.get("feePayer")
    memo, recent = terms.extra.get("memo") or "", terms.extra.get("recentBlockhash") or ""
    bare = bare and named is None
    fee_payer = terms.pay_to if bare else named
    if not isinstance(fee_payer, str) or not isinstance(memo, str) or not isinstance(recent, str):
        return None
    if terms.asset != asset.address or len(memo.encode(errors="replace")) > MEMO_MAX or terms.amount >= U64:
        return None
    try:
        address_bytes(terms.pay_to)
        payer, blockhash = address_bytes(fee_payer), address_bytes(recent) if recent else b""
        memo.encode()
    except ValueError:
        return None
    return SolanaTerms(payer, memo, blockhash, terms.extra.get("createRecipientAccount") is True, bare)


class SolanaWallet:
    """A key, a keypair's file, or an object that signs messages. Raises ``ConfigError``, ``MissingExtra``."""

    __slots__ = ("_signer", "_wallet", "address")

    def __init__(self, key: SvmKey | None = None, signer: SvmSigner | None = None) -> None:
        if isinstance(key, Path):
            key = key.expanduser()
        self._signer, self._wallet = signer, SvmWallet(key, signer)
        self.address = self._wallet.address

    def sign_message(self, message: bytes) -> bytes:
        """The signature's 64 bytes. Raises ``PayerError`` where a foreign signer signs something else."""
        if self._signer is None:
            return self._wallet.sign_local(message)
        made: Any = self._signer.sign_message(message)
        if inspect.iscoroutine(made):
            made.close()
            raise ConfigError("svm_signer.sign_message must not be asynchronous")
        signature = bytes(made)
        if len(signature) != 64 or not is_signed(address_bytes(self.address), message, signature):
            raise PayerError("svm_signer signed something else; nothing was sent")
        return signature

    def __repr__(self) -> str:
        return f"SolanaWallet({self.address})"


class Unsigned(NamedTuple):
    """A payment that waits for its signature. ``valid_before``: Unix time by which it can land no more."""

    wallet: SolanaWallet
    message: Any
    data: bytes
    reference: str
    payer: str
    valid_before: int
    bare: bool

    def payload(self) -> Json:
        """Sign it: the offer's ``payload`` (wire.md 1.3), with the fee payer's place left empty."""
        signature = solders("signature").Signature
        made = [signature.default(), signature.from_bytes(self.wallet.sign_message(self.data))]
        whole = bytes(solders("transaction").VersionedTransaction.populate(self.message, made))
        payload = {"transaction": base64.b64encode(whole).decode()}
        return {"payer": self.payer, **payload} if self.bare else payload


def prepare(
    wallet: SolanaWallet, terms: PaymentRequirements, asset: Asset, said: SolanaTerms, blockhash: bytes, now: int
) -> Unsigned:
    """Put the transaction together. Raises ``NothingPayable`` for an offer by which the payer would pay the fees.

    Its reference is the name under which our own servers keep it: of the message that is signed.
    """
    owner = address_bytes(wallet.address)
    if said.fee_payer == owner:
        raise NothingPayable("the offer names the payer's own wallet as the one that pays the network's fees")
    instructions = _instructions(owner, terms, asset, said)
    hash_of = solders("hash").Hash.from_bytes
    message = solders("message").MessageV0.try_compile(_key(said.fee_payer), instructions, [], hash_of(blockhash))
    data = bytes(solders("message").to_bytes_versioned(message))
    if message.header.num_required_signatures != 2 or bytes(message.account_keys[1]) != owner:
        raise NothingPayable("the offer's addresses stand in each other's place")
    reference = payment_id(terms.network, data)
    return Unsigned(wallet, message, data, reference, wallet.address, now + VALID_SECONDS, said.bare)


def _instructions(owner: bytes, terms: PaymentRequirements, asset: Asset, said: SolanaTerms) -> list[Any]:
    program, mint, pay_to = token_program(asset, frozenset()), address_bytes(asset.address), address_bytes(terms.pay_to)
    source, to = token_account(owner, mint, program), token_account(pay_to, mint, program)
    units, price = UNITS_WITH_CREATION if said.creates else UNITS, 1
    if said.memo or said.is_charge:  # the seller's may be the same for every call, and a message must not be
        units, price = units + secrets.randbelow(UNITS_SPREAD), 1 + secrets.randbelow(PRICES_SPREAD)
    transfer = b"\x0c" + terms.amount.to_bytes(8, "little") + bytes((asset.decimals,))
    made = [
        _instruction(COMPUTE_BUDGET, b"\x02" + units.to_bytes(4, "little")),
        _instruction(COMPUTE_BUDGET, b"\x03" + price.to_bytes(8, "little")),
        _instruction(program, transfer, (source, "w"), (mint, ""), (to, "w"), (owner, "s")),
    ]
    if said.memo or not said.is_charge:
        made.append(_instruction(MEMO, (said.memo or secrets.token_hex(16)).encode()))
    if said.creates:
        keys = ((said.fee_payer, "sw"), (to, "w"), (pay_to, ""), (mint, ""), (SYSTEM, ""), (program, ""))
        made.insert(2, _instruction(ASSOCIATED, b"\x01", *keys))
    return made


def _instruction(program: bytes, data: bytes, *accounts: tuple[bytes, str]) -> Any:
    """``accounts``: an address, and "s" where it signs, "w" where it is written to."""
    module = solders("instruction")
    metas = [module.AccountMeta(_key(each), "s" in how, "w" in how) for each, how in accounts]
    return module.Instruction(_key(program), data, metas)


def _key(address: bytes) -> Any:
    return solders("pubkey").Pubkey.from_bytes(address)


def receipt_problem(payment: str, transaction: str) -> str:
    """What is wrong with the transaction that a receipt names: it is the fee payer's signature over what we signed.

    ``payment`` is the header that was shown. No chain is asked.
    """
    try:
        sent = decode(base64.b64decode(_payload(payment)["transaction"], validate=True))
        signature = b58decode(transaction)
    except (ValueError, KeyError, TypeError):
        return "the receipt names no transaction"
    if len(signature) != 64 or not is_signed(sent.keys[0], sent.message, signature):
        return "the receipt names another transaction than was signed"
    return ""


def _payload(header: str) -> Mapping[str, Any]:
    if header.startswith("Payment "):
        return payment_auth.parse_credential(header).payload
    found: Mapping[str, Any] = decode_header(header)["payload"]
    return found
