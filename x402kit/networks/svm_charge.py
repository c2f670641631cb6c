"""solana/charge, the method that the HTTP ``Payment`` scheme has on Solana: what its challenges ask for (wire.md 7.2).

The request has an ``externalId`` of random text, which the payment repeats as its memo: without it two payments of one
price by one payer, in the life of a blockhash, are the same transaction.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from ..protocols.encoding import b64url
from ..protocols.jcs import canonical_json
from ..protocols.payment_methods import solana_name, solana_request

__all__ = ["METHOD", "charge_request"]

METHOD: Final = "solana"


def charge_request(
    network: str, amount: int, mint: str, pay_to: str, decimals: int, program: str, fee_payer: str, blockhash: str
) -> str:
    """A new request as JSON in its one spelling; ``blockhash`` may be empty. Empty on Solana's testnet, which the
    method does not know.
    """
    if not solana_name(network):
        return ""
    before, behind = _parts(network, amount, mint, pay_to, decimals, program, fee_payer, blockhash)
    return f"{before}{b64url(os.urandom(16))}{behind}"


@lru_cache(maxsize=1024)
def _parts(
    network: str, amount: int, mint: str, pay_to: str, decimals: int, program: str, fee_payer: str, blockhash: str
) -> tuple[str, str]:
    """What stands before and behind the text of ``externalId``."""
    made = solana_request(
        amount,
        mint,
        pay_to,
        network=solana_name(network),
        decimals=decimals,
        token_program=program,
        fee_payer=fee_payer,
        recent_blockhash=blockhash,
        external_id="*",
    )
    before, _, behind = canonical_json(made).decode().partition("*")
    return before, behind
