"""A payment that becomes balance: a top-up, credited once, to the payer that the settled payment shows.

What it costs its payer is the settlement's cost, and is worked out when it is claimed: the claim says so from then on,
however long it takes to be settled (``Claim.captured``), and whoever credits it (keeper.py, after a crash) credits the
same.
"""

from __future__ import annotations

from ..errors import PaymentInProgress
from ..ledger.port import Store
from ..model import Claim, Entry

__all__ = ["credit"]


async def credit(store: Store, claim: Claim) -> Entry:
    """Credit a settled claim. Asked again for the same claim, it gives the entry that was made then.

    Raises ``PaymentInProgress`` when another attempt has the claim.
    """
    if claim.state == "settled":
        await store.move(claim.payment_id, "credit", claim.owner, captured=claim.captured)
    entry = await store.entry(f"claim:{claim.payment_id}")
    if entry is None:
        raise PaymentInProgress(reference=claim.reference)
    return entry
