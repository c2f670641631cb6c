"""``exact`` on Solana: the offline half (wire.md 3). Pure: no I/O, no clock; solders is loaded on first use.

``parse`` reads a legacy or version 0 transaction; anything else is malformed (400, could_not_be_decoded), and so are
bytes that are not the one canonical spelling. ``check`` then decides in this order, before anything is signed; a
payload with several faults gets the first. Reasons begin with ``invalid_exact_svm_payload_`` unless written whole:

     1  network is the offer's                          network_mismatch (whole)
     2  no address lookup tables (D04)                  invalid_exact_svm_smart_wallet_alt_resolution_not_available
     3  account[0] is our fee payer                     invalid_exact_svm_fee_payer_mismatch
     4  one signer beside it, and no account twice      excessive_signers, signature_invalid
     5  the layout, below                               transaction_instructions_…, unknown_optional_instruction
     6  TransferChecked, of 10 bytes and 4 accounts     no_transfer_instruction
     7  the fee payer in no instruction's accounts (D01), nor its token account the source, nor the authority (D06)
                                                        transaction_fee_payer_transferring_funds
     8  the authority is the other signer               signature_invalid
     9  the mint's own token program, mint, decimals    mint_mismatch
    10  destination == the recipient's derived account  recipient_mismatch
    11  it is not the source, nor the authority's       transaction_fee_payer_transferring_funds
    12  amount == the offer's, exactly                  amount_mismatch
    13  the memo that the offer asked for               memo_count, memo_mismatch
    14  ``payer``, where the payload has one, is the authority (wire.md 1.6 row 11)
                                                        payer_mismatch
    15  ed25519, strictly, by the authority             signature_invalid

Three layouts, of which the seller chooses one and the payload none (``Terms``):

    strict    compute limit, compute price, TransferChecked, then up to four of Lighthouse and Memo
    relaxed   limit and price both or neither, one idempotent creation of the recipient's account where the price
              holds its rent (D03), TransferChecked, then up to four of Lighthouse and Memo
    charged   what clients of ``solana/charge`` build, for a challenge of ours that asked for it: the strict one, with
              limit and price in either order, and one memo, which is the challenge's

Both compute instructions are capped, each by itself and together (D02). Nothing else is let in, so that a durable
nonce, whose transaction would outlive its claim (C07), has no place: it must come first, by the system program.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final, NamedTuple

from ..errors import MalformedPayment, PaymentRefused
from ..model import Authorization, Json, PaymentPayload, PaymentRequirements
from ..money import MAX_AMOUNT, Asset
from ..protocols.encoding import b64decode
from .svm_transaction import (
    ASSOCIATED,
    COMPUTE_BUDGET,
    LIGHTHOUSE,
    MEMO,
    SYSTEM,
    TOKEN,
    TOKEN_2022,
    Instruction,
    Transaction,
    TransferChecked,
    address_bytes,
    address_text,
    decode,
    find_transfer,
    is_signed,
    token_account,
)

__all__ = [
    "SvmPayment",
    "Terms",
    "check",
    "parse",
    "payload_json",
    "payment_id",
]

INSTRUCTIONS_MAX: Final = 8
OPTIONAL_MAX: Final = 4
CHARGE_UNITS: Final = 200_000
"""The compute limit that clients of ``solana/charge`` set."""
VALID_SECONDS: Final = 180
"""How long a blockhash is taken to live at the most: 150 blocks, 60 to 90 s as a rule. Only the chain decides it."""

_OPTIONAL: Final = (LIGHTHOUSE, MEMO)
_P: Final = "invalid_exact_svm_payload_"
_I: Final = _P + "transaction_instructions_"
_FUNDS: Final = _P + "transaction_fee_payer_transferring_funds"
_SIGNATURE: Final = _P + "signature_invalid"
_UNDECODABLE: Final = _P + "transaction_could_not_be_decoded"


class SvmPayment(NamedTuple):
    """What a payment header holds. ``transfer`` is its one transfer, None where there is no clear one."""

    transaction: Transaction
    transfer: TransferChecked | None
    stated_payer: str


class Terms(NamedTuple):
    """What the seller asks of a transaction beside the offer. Keys as bytes; prices in micro-lamports a unit."""

    asset: Asset
    program: bytes
    """The token program that the mint belongs to."""
    fee_payer: bytes
    relaxed: bool = False
    creates: bool = False
    """Whether today's prices hold the rent of the recipient's account."""
    memo: str = ""
    max_units: int = 200_000
    max_unit_price: int = 5_000_000
    max_priority_lamports: int = 50_000
    any_order: bool = False
    """Whether the compute price may stand before the limit."""

    def charged(self, memo: str) -> Terms:
        """The same for a payment by ``solana/charge``, whose challenge asked for ``memo``."""
        units = max(self.max_units, CHARGE_UNITS)
        return self._replace(relaxed=False, creates=False, any_order=True, memo=memo, max_units=units)


def payment_id(network: str, message: bytes) -> str:
    """The name of a Solana payment in the one claim space: of what is signed, never of signatures (D07)."""
    return f"svm:{network.partition(':')[2]}:{hashlib.sha256(message).hexdigest()}"


def parse(payment: PaymentPayload, offer: PaymentRequirements, valid_until: int) -> Authorization:
    """Read a Solana payload (wire.md 1.3). Raises ``MalformedPayment``; nothing is checked yet.

    ``valid_until``, Unix time: how long the flow remembers the payment at least; see ``VALID_SECONDS``.
    """
    text, stated = payment.payload.get("transaction"), payment.payload.get("payer", "")
    try:
        if not isinstance(text, str) or not isinstance(stated, str):
            raise ValueError("transaction is missing")
        transaction = decode(b64decode(text))
    except ValueError as e:
        raise MalformedPayment(_UNDECODABLE, detail=str(e)[:200]) from e
    transfer = find_transfer(transaction.instructions)
    return Authorization(
        payment_id(offer.network, transaction.message),
        offer.network,
        offer.asset,
        offer.pay_to,
        address_text(transfer.authority) if transfer else "",
        min(transfer.amount, MAX_AMOUNT) if transfer else 0,
        valid_until,
        SvmPayment(transaction, transfer, stated),
    )


def payload_json(authorization: Authorization) -> Json:
    """The payer's own payload in the published shape."""
    payment = authorization.body
    assert isinstance(payment, SvmPayment)
    return {"transaction": base64.b64encode(payment.transaction.raw).decode()}


def check(authorization: Authorization, offer: PaymentRequirements, terms: Terms) -> SvmPayment:
    """The table above. Raises ``PaymentRefused``."""
    payment = authorization.body
    assert isinstance(payment, SvmPayment)
    reason = "network_mismatch" if authorization.network != offer.network else _fault(payment, offer, terms)
    if reason:
        raise PaymentRefused(reason)
    return payment


def _fault(payment: SvmPayment, offer: PaymentRequirements, terms: Terms) -> str:
    transaction, transfer = payment.transaction, payment.transfer
    pay_to = address_bytes(offer.pay_to)
    reason = _signers_fault(transaction, terms) or _layout_fault(transaction.instructions, pay_to, terms)
    if reason:
        return reason
    if transfer is None:
        return _P + "no_transfer_instruction"
    return (
        _isolation_fault(transaction, transfer, terms)
        or _transfer_fault(transfer, pay_to, offer.amount, terms)
        or _memo_fault(transaction.instructions, terms.memo)
        or _payer_fault(payment, transfer)
    )


def _signers_fault(transaction: Transaction, terms: Terms) -> str:
    if transaction.has_lookups:
        return "invalid_exact_svm_smart_wallet_alt_resolution_not_available"
    if not transaction.keys or transaction.keys[0] != terms.fee_payer:
        return "invalid_exact_svm_fee_payer_mismatch"
    if len(transaction.signatures) > 2:
        return _P + "excessive_signers"
    if len(transaction.signatures) < 2 or len(set(transaction.keys)) != len(transaction.keys):
        return _SIGNATURE
    return ""


def _layout_fault(instructions: tuple[Instruction, ...], pay_to: bytes, terms: Terms) -> str:
    if not (1 if terms.relaxed else 3) <= len(instructions) <= INSTRUCTIONS_MAX:
        return _I + "length"
    at = 0
    if not terms.relaxed or instructions[0].program == COMPUTE_BUDGET:
        if reason := _compute_fault(instructions, terms):
            return reason
        at = 2
    if instructions[at].program == ASSOCIATED:
        if reason := _creation_fault(instructions[at], pay_to, terms):
            return reason
        at += 1
    return _rest_fault(instructions[at:])


def _rest_fault(instructions: tuple[Instruction, ...]) -> str:
    if not instructions or instructions[0].program not in (TOKEN, TOKEN_2022):
        return _P + "no_transfer_instruction"
    rest = instructions[1:]
    if len(rest) > OPTIONAL_MAX:
        return _I + "length"
    for one in rest:
        if one.program not in _OPTIONAL:
            return _P + "unknown_optional_instruction"
    return ""


def _compute_fault(instructions: tuple[Instruction, ...], terms: Terms) -> str:
    """The first two must be limit and price, so that there is exactly one of each (D02)."""
    limit = price = instructions[0]
    if len(instructions) > 2:
        price = instructions[1]
    if terms.any_order and limit.data[:1] == b"\x03":
        limit, price = price, limit
    if limit.program != COMPUTE_BUDGET or len(limit.data) != 5 or limit.data[0] != 2 or limit.accounts:
        return _I + "compute_limit_instruction"
    if price.program != COMPUTE_BUDGET or len(price.data) != 9 or price.data[0] != 3 or price.accounts:
        return _I + "compute_price_instruction"
    units, each = int.from_bytes(limit.data[1:], "little"), int.from_bytes(price.data[1:], "little")
    if units > terms.max_units:
        return _I + "compute_limit_instruction_too_high"
    if each > terms.max_unit_price or units * each > terms.max_priority_lamports * 1_000_000:
        return _I + "compute_price_instruction_too_high"
    return ""


def _creation_fault(instruction: Instruction, pay_to: bytes, terms: Terms) -> str:
    """The one instruction in which the fee payer may stand: it funds the recipient's account, idempotently (D03)."""
    reason = _P + "transaction_create_ata_instruction"
    if not (terms.relaxed and terms.creates) or instruction.data != b"\x01" or len(instruction.accounts) != 6:
        return reason
    funder, account, owner, mint, system, program = instruction.accounts
    if owner != pay_to:
        return reason + "_incorrect_payee"
    wanted = address_bytes(terms.asset.address)
    if mint != wanted or program != terms.program:
        return reason + "_incorrect_asset"
    if funder != terms.fee_payer or system != SYSTEM or account != token_account(pay_to, wanted, terms.program):
        return reason
    return ""


def _isolation_fault(transaction: Transaction, transfer: TransferChecked, terms: Terms) -> str:
    ours = terms.fee_payer
    for program, accounts, _ in transaction.instructions:
        if program == ours or (ours in accounts and program != ASSOCIATED):
            return _FUNDS
    if transfer.source == token_account(ours, transfer.mint, transfer.program):
        return _FUNDS
    return "" if transfer.authority == transaction.keys[1] else _SIGNATURE


def _transfer_fault(transfer: TransferChecked, pay_to: bytes, amount: int, terms: Terms) -> str:
    mint = address_bytes(terms.asset.address)
    if transfer.program != terms.program or transfer.mint != mint or transfer.decimals != terms.asset.decimals:
        return _P + "mint_mismatch"
    if transfer.destination != token_account(pay_to, mint, terms.program):
        return _P + "recipient_mismatch"
    if transfer.source == transfer.destination or transfer.authority == pay_to:
        return _FUNDS
    return "" if transfer.amount == amount else _P + "amount_mismatch"


def _memo_fault(instructions: tuple[Instruction, ...], memo: str) -> str:
    if not memo:
        return ""
    memos = [one.data for one in instructions if one.program == MEMO]
    if len(memos) != 1:
        return _P + "memo_count"
    return "" if memos[0] == memo.encode() else _P + "memo_mismatch"


def _payer_fault(payment: SvmPayment, transfer: TransferChecked) -> str:
    if payment.stated_payer and payment.stated_payer != address_text(transfer.authority):
        return _P + "payer_mismatch"
    transaction = payment.transaction
    return "" if is_signed(transfer.authority, transaction.message, transaction.signatures[1]) else _SIGNATURE
