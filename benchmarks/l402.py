"""CPU time of L402: a credential verified, from the header's text to caveats that are met, beside its bare HMACs; and
a 402 in every protocol, whose invoice is there already.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp

from x402kit.protocols.caveats import check_caveats, standard_caveats
from x402kit.protocols.l402 import credential_header, identifier, parse_credential, token_text
from x402kit.protocols.macaroon import is_good, mint

from .asgi import drive
from .processes import Probe
from .results import Rounds, Row
from .stubs import NETWORKS, paid_app

__all__ = ["measure"]

ROUNDS: Final = 21
TIMES: Final = 4000
"""In each round, of each case."""
REQUESTS: Final = 600
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


async def _challenged(app: ASGIApp) -> float:
    started = time.process_time()
    assert await drive(app, "/weather", [None] * REQUESTS, 16) == {402}
    return (time.process_time() - started) / REQUESTS


async def measure(_: Probe | None) -> list[Row]:
    """The rows of this part."""
    seen = Rounds()
    paywall, app = paid_app(":memory:", networks=NETWORKS[:1], lightning=True)
    for _round in range(ROUNDS):
        seen.add("challenge", await _challenged(app))
        seen.add("bare", _timed(bare))
        seen.add("verify", _timed(verify))
    await paywall.stop()
    return [
        Row(
            "a 402 in x402, L402 and Payment, the invoice at hand",
            seen.micros("challenge"),
            f"{seen.micros('challenge'):.1f} µs",
            60,
            unit=" µs",
        ),
        Row("L402: the bare HMACs and SHA-256, three caveats", 0, f"{seen.micros('bare'):.1f} µs"),
        Row(
            "L402: a credential verified, × the bare HMACs",
            seen.ratio("verify", "bare"),
            seen.shown("verify", "bare"),
            3,
            unit=" ×",
        ),
    ]
