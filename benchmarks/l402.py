"""CPU time of verifying an L402 credential: from the header's text to caveats that are met, beside its bare HMACs."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Final

from x402kit.protocols.caveats import check_caveats, standard_caveats
from x402kit.protocols.l402 import credential_header, identifier, parse_credential, token_text
from x402kit.protocols.macaroon import is_good, mint

from .processes import Probe
from .results import Rounds, Row

__all__ = ["measure"]

ROUNDS: Final = 21
TIMES: Final = 4000
"""In each round, of each case."""
NOW: Final = 1_767_225_600
ROOT: Final = bytes(range(32))
PREIMAGE: Final = b"p" * 32
HASH: Final = hashlib.sha256(PREIMAGE).digest()
IDENTIFIER: Final = identifier(HASH, b"t" * 32)
CAVEATS: Final = standard_caveats(service="svc", route="GET /weather", amount=21_000)
HEADER: Final = credential_header(token_text(mint(ROOT, IDENTIFIER, "svc", CAVEATS)), PREIMAGE.hex())


def verify() -> None:
    """All that a call with a token asks of the wire's part."""
    shown = parse_credential(HEADER)
    assert is_good(shown.token, ROOT)
    assert hashlib.sha256(shown.preimage).digest() == shown.payment_hash
    check_caveats(
        shown.token.caveats,
        service="svc",
        route="GET /weather",
        request="",
        amount=21_000,
        now=NOW,
        preimage=shown.preimage,
    )


def bare() -> None:
    """What can't be avoided: the key, the identifier, three caveats, and the preimage."""
    made = hmac.digest(b"macaroons-key-generator", ROOT, "sha256")
    for part in (IDENTIFIER, *CAVEATS):
        made = hmac.digest(made, part, "sha256")
    assert hashlib.sha256(PREIMAGE).digest() == HASH


def _timed(call: Callable[[], None]) -> float:
    started = time.process_time()
    for _ in range(TIMES):
        call()
    return (time.process_time() - started) / TIMES


async def measure(_: Probe | None) -> list[Row]:
    """The rows of this part."""
    seen = Rounds()
    for _round in range(ROUNDS):
        seen.add("bare", _timed(bare))
        seen.add("verify", _timed(verify))
    return [
        Row("L402: the bare HMACs and SHA-256, three caveats", 0, f"{seen.micros('bare'):.1f} µs"),
        Row(
            "L402: a credential verified, × the bare HMACs",
            seen.ratio("verify", "bare"),
            seen.shown("verify", "bare"),
            3,
            unit=" ×",
        ),
    ]
