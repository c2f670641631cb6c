"""What became of a payment that a facilitator co-signed and sent: its signature is only what the facilitator says.

    the signature that it named is in a block     as for our own (svm_outcome.py)
    otherwise the message is looked for among what reached the recipient's token account since
      it is found                                 the same, by the signature that it has there
      it is not, its blockhash is dead, and the time that any blockhash can live is long over
                                                  failed: transaction_expired
      else                                        pending

The facilitator's word is not believed about a failure: the transaction that it names may be about something else.
"""

from __future__ import annotations

import base64
from typing import Final

from ..model import Claim, Outcome
from ..protocols.encoding import parse_object
from .rpc import RpcRefused, RpcTrouble
from .svm_outcome import EXPIRED, MISMATCH, Judge
from .svm_scan import Scan
from .svm_transaction import address_text, decode

__all__ = ["judge_foreign"]

_MARGIN_SECONDS: Final = 60
"""So long after an authorization's end, the last block in which it could have landed is final and in every index."""


async def judge_foreign(judge: Judge, scan: Scan, claim: Claim, now: int) -> Outcome:
    """The table above, at Unix time ``now``. Sends nothing."""
    try:
        named = await judge.seen(claim) if claim.reference else None
        if named is not None and named.reason != MISMATCH:
            return named
        signature = await scan.signature_of(claim)
        if signature:
            found = await judge.seen(claim._replace(reference=signature))
            return found or Outcome("pending", reference=signature)
        blockhash = _blockhash(claim)
        over = now > claim.valid_until + _MARGIN_SECONDS
        if over and blockhash and not await judge.node.is_valid(blockhash):
            return Outcome("failed", EXPIRED, claim.reference)
    except (RpcTrouble, RpcRefused, KeyError, TypeError) as e:
        return Outcome("pending", str(e), claim.reference)
    return Outcome("pending", reference=claim.reference)


def _blockhash(claim: Claim) -> str:
    """Of the transaction in the stored call to the facilitator; empty where there is none."""
    try:
        call = parse_object(claim.intent)
        text = call["body"]["paymentPayload"]["payload"]["transaction"]
        return address_text(decode(base64.b64decode(text, validate=True)).blockhash)
    except (ValueError, KeyError, TypeError):
        return ""
