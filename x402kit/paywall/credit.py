"""A payment that becomes balance: a top-up, credited once, to the payer that the settled payment shows."""

from __future__ import annotations

from ..errors import PaymentInProgress
from ..ledger.port import Store
from ..model import Claim, Entry

__all__ = ["credit"]


async def credit(store: Store, claim: Claim, wanted: int) -> Entry:
    """Credit ``wanted`` atomic units of a settled claim; what was paid above it is what the settlement cost.

    Asked again for the same claim, it gives the entry that was made then. Raises ``PaymentInProgress`` when another
    attempt has the claim.
    """
    if claim.state == "settled":
        captured = max(claim.amount - wanted, 0)
        await store.move(claim.payment_id, "credit", claim.owner, captured=captured)
    entry = await store.entry(f"claim:{claim.payment_id}")
    if entry is None:
        raise PaymentInProgress(reference=claim.reference)
    return entry
