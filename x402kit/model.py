"""The values that pass between the rooms, and every limit in one place.

All are immutable. Amounts are ``int`` atomic units of the offer's asset; times are whole Unix seconds. What every paid
call makes anew is a named tuple: it takes a quarter of the time of a frozen dataclass (16 µs of a call).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

__all__ = [
    "BODY_MAX",
    "BODY_SECONDS",
    "BYTES_NESTED_MAX",
    "CHALLENGE_SECONDS",
    "HEADER_MAX",
    "INVOICE_KEPT_SECONDS",
    "KEPT_BODY_MAX",
    "KEPT_SECONDS",
    "LEEWAY_SECONDS",
    "NESTING_MAX",
    "STALL_SECONDS",
    "START_SECONDS",
    "VALID_FOR_MAX",
    "VALID_FOR_MIN",
    "Account",
    "Authorization",
    "Balance",
    "Claim",
    "Entry",
    "Hold",
    "Intent",
    "Invoice",
    "Json",
    "Outcome",
    "PaymentPayload",
    "PaymentRequired",
    "PaymentRequirements",
    "ResourceInfo",
    "SettlementResponse",
    "Spend",
    "VerifyResponse",
]

Json = dict[str, Any]
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

HEADER_MAX: Final = 16 * 1024
"""Bytes of a payment header, before it is decoded (K01)."""
BYTES_NESTED_MAX: Final = 64 * 1024
"""Bytes of a JSON document that we parse from a peer (a facilitator call, a 402 body)."""
NESTING_MAX: Final = 32
BODY_MAX: Final = 1024 * 1024
"""Bytes of a request body that a price may read, by default."""
BODY_SECONDS: Final = 30
"""Seconds within which such a body must have arrived (K02)."""
KEPT_BODY_MAX: Final = 256 * 1024
"""Bytes of an answer that are kept for a replay."""
STALL_SECONDS: Final = 120
"""How long a stream may give nothing, by default (H06)."""
START_SECONDS: Final = 600
"""How long a metered or balance-paid call may take to its first byte, by default: so long its reserve is held (I6)."""
KEPT_SECONDS: Final = 3600
"""How long a kept answer can be replayed."""
INVOICE_KEPT_SECONDS: Final = 86_400
"""How long the row of an invoice outlives the invoice: a payment that comes late still finds what it was for."""
CHALLENGE_SECONDS: Final = 300
"""Life of a challenge."""
LEEWAY_SECONDS: Final = 30
"""Clock skew forgiven in a challenge's expiry (A15)."""
VALID_FOR_MIN: Final = 6
"""An authorization must outlive the moment of the check by this much (wire.md 2.1 check 7)."""
VALID_FOR_MAX: Final = 2 * 3600
"""…and may not outlive it by more than this: claims are kept longer than authorizations live (B14, C07)."""


@dataclass(frozen=True, slots=True)
class ResourceInfo:
    """x402 v2 ``resource``. On the way in it is display only, never authority."""

    url: str
    description: str = ""
    mime_type: str = ""


class PaymentRequirements(NamedTuple):
    """One entry of ``accepts[]``: an offer. ``amount`` in atomic units of ``asset`` on ``network`` (CAIP-2)."""

    scheme: str
    network: str
    amount: int
    asset: str
    pay_to: str
    max_timeout_seconds: int
    extra: Mapping[str, Any] = _NOTHING


@dataclass(frozen=True, slots=True)
class PaymentRequired:
    """A parsed 402 challenge, v1 or v2 on the wire."""

    x402_version: int
    accepts: tuple[PaymentRequirements, ...]
    resource: ResourceInfo | None = None
    error: str = ""
    extensions: Mapping[str, Any] = field(default_factory=dict[str, Any])
    raw_accepts: tuple[Json, ...] = ()
    """The entries as they came, to be echoed unchanged."""


class PaymentPayload(NamedTuple):
    """A parsed payment header. v1 has no ``accepted``; its scheme and network stand at the top."""

    x402_version: int
    scheme: str
    network: str
    payload: Json
    accepted: PaymentRequirements | None = None
    resource: ResourceInfo | None = None
    extensions: Mapping[str, Any] = _NOTHING
    raw: Mapping[str, Any] = _NOTHING

    @property
    def quote(self) -> str:
        """The challenge's quote as the client echoed it, or an empty string."""
        value = self.accepted.extra.get("quote") if self.accepted else None
        return value if isinstance(value, str) else ""


class Authorization(NamedTuple):
    """A payment that passed its rail's offline check: what the flow knows of it, whatever the chain.

    ``payment_id`` is unique over all protocols (one claim space, C09); ``payer`` is the one who signed; ``valid_until``
    is when it can no longer land; ``body`` is the rail's own, opaque to the flow.
    """

    payment_id: str
    network: str
    asset: str
    pay_to: str
    payer: str
    amount: int
    valid_until: int
    body: Any

    def claim(self, now: int, **columns: Any) -> Claim:
        """A claim on this payment; ``columns`` are what else is known of it."""
        known: dict[str, Any] = {
            "state": "claimed",
            "fingerprint": b"",
            "credential": b"",
            "resource": "",
            "deadline": now,
        }
        return Claim(
            payment_id=self.payment_id,
            network=self.network,
            asset=self.asset,
            pay_to=self.pay_to,
            payer=self.payer,
            amount=self.amount,
            valid_until=self.valid_until,
            created_at=now,
            **(known | columns),
        )


class Intent(NamedTuple):
    """A settlement that is about to be sent, stored before it is (I9).

    ``reference`` is what a person can look up (a transaction hash; empty through a facilitator that did not say one);
    ``blob`` is all that the rail needs to send the very same thing again.
    """

    reference: str
    blob: bytes
    wallet: str = ""
    nonce: int = -1


class Outcome(NamedTuple):
    """What the chain, or the facilitator, says of a settlement: ``settled``, ``failed`` (certain) or ``pending``."""

    state: str
    reason: str = ""
    reference: str = ""
    block: int = 0
    block_hash: str = ""
    log_index: int = -1
    final: bool = False
    never_sent: bool = False
    """Certain that nothing was broadcast, so that what the intent holds (a nonce) can be given back."""
    spent: bool = False
    """With ``failed``: the payment is used up all the same, so that nobody may be asked to sign anew for it (B12)."""
    resend: bool = False
    """Whether sending the same thing again may help (dropped from the mempool, I-07)."""


class Claim(NamedTuple):
    """The durable record that a payment is being used for a request: one row, see ledger/rules.py for its states.

    A named tuple, in the order of the store's columns. ``fingerprint`` is a digest of the request, ``credential`` one
    of the payment as it was spelled; ``deadline`` is when a settled payment stops waiting to be served.
    """

    payment_id: str
    state: str
    fingerprint: bytes
    credential: bytes
    resource: str
    network: str
    asset: str
    pay_to: str
    payer: str
    amount: int
    valid_until: int
    created_at: int
    deadline: int
    confirmations: int = 0
    owner: str = ""
    lease_until: int = 0
    attempts: int = 0
    reference: str = ""
    intent: bytes = b""
    wallet: str = ""
    nonce: int = -1
    block: int = 0
    block_hash: str = ""
    log_index: int = -1
    final: int = 0
    settled_at: int = 0
    served_at: int = 0
    next_check: int = 0
    status: int = 0
    headers: bytes = b""
    body: bytes | None = None
    kept_until: int = 0
    body_digest: bytes = b""
    reason: str = ""
    spent: int = 0
    captured: int = 0
    """What the call cost of ``amount``; the rest became balance."""
    request_id: str = ""
    """Names the call to its payer, and can't be guessed."""

    def sent(self, intent: Intent) -> Claim:
        """The claim once its intent is stored: of a claim's columns, an intent's are four in a row."""
        return Claim._make((self[0], "sent", *self[2:_REFERENCE], *intent, *self[_REFERENCE + 4 :]))

    @property
    def prepared(self) -> Intent:
        """The intent that is stored with it."""
        return Intent._make(self[_REFERENCE : _REFERENCE + 4])

    def changed(self, **columns: Any) -> Claim:
        """The claim with some columns as given: ``_replace`` in a third of its time."""
        row: list[Any] = list(self)
        for name, value in columns.items():
            row[_CLAIM_INDEX[name]] = value
        return Claim._make(row)


_CLAIM_INDEX: Final = {name: index for index, name in enumerate(Claim._fields)}
_REFERENCE: Final = _CLAIM_INDEX["reference"]
assert tuple(Claim._fields[_REFERENCE + i] for i in range(4)) == ("reference", "intent", "wallet", "nonce")


class Account(NamedTuple):
    """A balance: whose, and of what. ``owner`` is a wallet on a network (CAIP-10) or a key account."""

    owner: str
    asset: str

    @classmethod
    def of(cls, network: str, asset: str, wallet: str) -> Account:
        """The account of a wallet; EVM addresses in lower case, Solana's as they are (F04)."""
        if network.startswith("eip155:"):
            asset, wallet = asset.lower(), wallet.lower()
        return cls(f"{network}:{wallet}", f"{network}/{asset}")


class Balance(NamedTuple):
    """What an account holds, in atomic units of its asset."""

    available: int
    held: int = 0


class Hold(NamedTuple):
    """A reserve on an account: one row. Times in Unix seconds, but for the lease, which runs on the store's own clock.

    ``holder`` names one attempt of one process, as a claim's ``owner`` does; its lease is kept alive until the hold
    ends. ``deadline`` is when a hold without a live lease expires: at once, but for the hold of a job, which outlives
    its request. The answer is kept only where an idempotency key asks for it (C06).
    """

    id: str
    owner: str
    asset: str
    amount: int
    holder: str
    created_at: int
    deadline: int
    state: str = "open"
    lease_until: int = 0
    resource: str = ""
    request_id: str = ""
    fingerprint: bytes = b""
    captured: int = 0
    lost: int = 0
    """What the call cost above ``captured``: the seller's loss (E04)."""
    ended_at: int = 0
    status: int = 0
    headers: bytes = b""
    body: bytes | None = None
    body_digest: bytes = b""
    kept_until: int = 0

    @property
    def account(self) -> Account:
        return Account(self.owner, self.asset)


class Entry(NamedTuple):
    """One move in the books: amounts in atomic units that sum to zero. ``key`` makes it happen once."""

    id: int
    owner: str
    asset: str
    key: str
    type: str
    external: int
    available: int
    held: int
    revenue: int
    suspense: int
    balance: int
    """``available`` after the move."""
    at: int
    resource: str = ""
    request_id: str = ""
    reference: str = ""
    """What a person can look up: a transaction's hash."""


class Spend(NamedTuple):
    """What is spent together with a reserve: a wallet proof, once (F01). ``until`` is when it can be forgotten."""

    proof_id: str
    until: int


class Invoice(NamedTuple):
    """A Lightning invoice that was issued, and what it was issued for: one row. ``amount`` in msat.

    ``payment_hash`` in hex; ``fingerprint`` is a digest of the request and ``terms`` is what else it is bound to. Times
    in Unix seconds: ``next_check`` is when to ask the node again. ``state`` is ``open`` until the node says otherwise.
    """

    payment_hash: str
    network: str
    amount: int
    bolt11: str
    fingerprint: bytes
    resource: str
    terms: bytes
    created_at: int
    expires_at: int
    next_check: int
    state: str = "open"


class SettlementResponse(NamedTuple):
    """The receipt: content of PAYMENT-RESPONSE and of a facilitator's /settle answer (wire.md 1.4)."""

    success: bool
    network: str
    transaction: str = ""
    payer: str = ""
    amount: int | None = None
    error_reason: str = ""


@dataclass(frozen=True, slots=True)
class VerifyResponse:
    """A facilitator's /verify answer (wire.md 1.4)."""

    is_valid: bool
    payer: str = ""
    invalid_reason: str = ""
