"""The paying client: transports for httpx and httpx2 that answer x402's 402 by themselves, within limits.

    payer = Payer(evm_key=..., limits=Limits(per_call="$0.05", per_day="$5", hosts=["api.example.com"]))
    client = httpx.Client(transport=payer.transport())
    answer = client.post(url, json=body)
    payment_of(answer)

A 402 that is no x402 challenge, or holds no offer that we know, comes back untouched; one that is for us and that the
policy refuses raises, before anything is signed.
"""

from __future__ import annotations

from ..errors import (
    BalanceTooLow,
    NothingPayable,
    PayerError,
    PaymentNotAccepted,
    PaymentOutcomeUnknown,
    PolicyRefused,
    ProofNotAccepted,
    TooDear,
    UnreplayableBody,
    WalletServiceError,
)
from .journal import Payment
from .journal_calls import BalanceCall
from .payer import Payer
from .policy import Limits, Proposal
from .prepaid import AsyncPrepaidWallet, PrepaidWallet
from .receipts import PaymentInfo, payment_of
from .wallet_service import TopUp, Transaction, WalletBalance, WalletInfo, Withdrawal
from .wallets import AccountWallet, KeyWallet, Wallet

__all__ = [
    "AccountWallet",
    "AsyncPrepaidWallet",
    "BalanceCall",
    "BalanceTooLow",
    "KeyWallet",
    "Limits",
    "NothingPayable",
    "Payer",
    "PayerError",
    "Payment",
    "PaymentInfo",
    "PaymentNotAccepted",
    "PaymentOutcomeUnknown",
    "PolicyRefused",
    "PrepaidWallet",
    "ProofNotAccepted",
    "Proposal",
    "TooDear",
    "TopUp",
    "Transaction",
    "UnreplayableBody",
    "Wallet",
    "WalletBalance",
    "WalletInfo",
    "WalletServiceError",
    "Withdrawal",
    "payment_of",
]
