"""What to do with a payment that is shown, by what its claim says. No I/O: this is the table of design.md, and the law.

    claim        the same request and spelling        anything else
    none/failed  ADMIT: check, claim, settle          ADMIT
    claimed      RESTART if its worker is gone        REFUSE (403), or 409 while it is worked on
    sent         LOOK at the chain, if gone           REFUSE
    unknown      LOOK                                 REFUSE
    settled      SERVE                                REFUSE
    served       REPLAY                               REFUSE
    credited     REPLAY                               REFUSE
    spent        REFUSE                               REFUSE

Whether a worker is gone only the store can say: RESTART, LOOK and SERVE first ``take`` the claim, and who can't take it
answers 409. Nothing here, and nothing after it, answers 402 unless the claim is ``failed``: no money moved (I7).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["Step", "next_step"]


class Step(Enum):
    """What the gate does next."""

    ADMIT = "admit"
    RESTART = "restart"
    LOOK = "look"
    SERVE = "serve"
    REPLAY = "replay"
    BUSY = "busy"
    REFUSE = "refuse"


_SAME: Final = {
    "failed": Step.ADMIT,
    "claimed": Step.RESTART,
    "sent": Step.LOOK,
    "unknown": Step.LOOK,
    "settled": Step.SERVE,
    "served": Step.REPLAY,
    "credited": Step.REPLAY,
    "spent": Step.REFUSE,
}


def next_step(state: str | None, *, same_request: bool, same_spelling: bool) -> Step:
    """The step for a claim in ``state`` (None: there is none).

    A second spelling of one payment for the same request (B04) waits like the first while money is on its way, and is
    refused once it is spent: the stored answer goes only to who shows the payment as it was first shown.
    """
    if state is None or state == "failed":
        return Step.ADMIT
    if not same_request:
        return Step.REFUSE
    if not same_spelling:
        return Step.BUSY if state in ("claimed", "sent") else Step.REFUSE
    return _SAME[state]
