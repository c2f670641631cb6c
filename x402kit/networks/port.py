"""The port between the flow and any place where money moves.

The flow knows a rail only by this. ``parse`` and ``check`` are pure; the rest talks to a chain or a facilitator. What a
rail says of a settlement is one of the three words of ``Outcome``: settled, failed (certain), pending.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from ..errors import ConfigError
from ..model import Authorization, Claim, Intent, Json, Outcome, PaymentPayload, PaymentRequirements
from ..money import Asset

__all__ = [
    "ChargingRail",
    "ContractWallets",
    "HintingRail",
    "Landed",
    "Nonces",
    "OpenRail",
    "PayingRail",
    "ProvesWallets",
    "Rail",
    "ScanningRail",
    "paying",
    "scanning",
]


class Nonces(Protocol):
    """The durable allocator of transaction nonces, shared by all processes that use one wallet (B15)."""

    async def take_nonce(self, wallet: str, payment_id: str, floor: int) -> int:
        """The lowest free nonce of ``wallet``, at least ``floor`` (the chain's pending count), for this payment."""
        ...

    async def free_nonce(self, wallet: str, nonce: int) -> None:
        """Give a nonce back: certain that nothing was broadcast with it."""
        ...


class Rail(Protocol):
    """One way to be paid: an asset on a network, to one recipient."""

    @property
    def scheme(self) -> str: ...
    @property
    def network(self) -> str:
        """CAIP-2."""
        ...

    @property
    def asset(self) -> Asset: ...
    @property
    def pay_to(self) -> str: ...
    @property
    def confirmations(self) -> int:
        """Blocks on top of the settlement's own before it counts, unless the price says otherwise."""
        ...

    @property
    def final_depth(self) -> int:
        """Blocks after which a settlement is no longer watched for a reorganisation (I-08)."""
        ...

    @property
    def prepare_is_pure(self) -> bool:
        """Whether ``prepare`` asks nobody, takes no nonce and remembers nothing: its intent is then stored with the
        claim itself, by one commit instead of two, and one that is not used needs no ``discard``.
        """
        ...

    def extra(self) -> Json:
        """What an offer's ``extra`` must hold for standard clients (EIP-712 name and version, a fee payer)."""
        ...

    def surcharge(self) -> int:
        """Atomic units added to every offer for the settlement's cost; constant inside a window, 0 if not asked for."""
        ...

    def surcharges(self) -> tuple[int, ...]:
        """This window's surcharge, and the one before while its challenges live."""
        ...

    def parse(self, payment: PaymentPayload, offer: PaymentRequirements) -> Authorization:
        """Read the scheme's own payload. Raises ``MalformedPayment`` (400). Pure; no signature is looked at."""
        ...

    def check(self, authorization: Authorization, offer: PaymentRequirements, now: int) -> None:
        """All that can be decided offline. Raises ``PaymentRefused`` with a published reason (402). Pure."""
        ...

    async def start(self) -> None:
        """Connect, and refuse a set-up that can't work (wrong chain id). Raises ``ConfigError``."""
        ...

    async def ready(self) -> None:
        """Raises ``RailUnavailable`` when a settlement could not be paid for now (B16); cached for some seconds."""
        ...

    async def verify(self, authorization: Authorization, offer: PaymentRequirements) -> None:
        """All that needs the chain: contract signatures, simulation. Sends nothing.

        Raises ``PaymentRefused`` (certain, 402), ``PaymentUsed`` (its nonce is spent and the recipient
        has the money, 403), ``RailUnavailable`` (503).
        """
        ...

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        """Build and sign what ``send`` will send, to be stored first. Sends nothing; ``RailUnavailable``."""
        ...

    async def send(self, intent: Intent) -> Outcome:
        """Send it, or the very same thing again. The far side's faults don't raise: what is not certain is pending."""
        ...

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        """An intent that was never sent, or was certainly refused: release what it holds."""
        ...

    async def outcome(self, claim: Claim) -> Outcome:
        """What became of a claim in ``sent``, ``unknown`` or ``settled``; pending when that can't be seen."""
        ...

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        """``outcome``, repeated until it is no longer pending or the time is over."""
        ...

    async def close(self) -> None: ...


class OpenRail(Rail, Protocol):
    """A rail that can settle for anyone: what a facilitator needs. Its own ``pay_to`` is of no account there."""

    @property
    def signers(self) -> Sequence[str]:
        """Addresses of the wallets that it settles from; empty where it can't."""
        ...

    def for_recipient(self, pay_to: str) -> Rail:
        """The same rail, paid to another address, over the same wallet and node. Raises ``ConfigError``."""
        ...


class ContractWallets(Protocol):
    """Asks contract wallets of one network whether a signature is theirs (EIP-1271)."""

    async def is_valid_signature(self, address: str, digest: bytes, signature: bytes) -> bool:
        """``address`` in lower case. Nothing that it answers is kept. Raises ``RailUnavailable``."""
        ...


@runtime_checkable
class ProvesWallets(Protocol):
    """What a rail may be beside its being one: it can ask contract wallets."""

    @property
    def contract_wallets(self) -> ContractWallets | None:
        """None where it has no node to ask, or contract wallets are switched off."""
        ...


@runtime_checkable
class PayingRail(Rail, Protocol):
    """A rail that can pay out: a balance back to its owner's wallet, from the wallet that its payments went to.

    A payout is stored as a row of a claim's shape: ``payer`` is the recipient, the intent's columns are as in a claim.
    """

    @property
    def payer_wallet(self) -> str:
        """The address that pays, which is also ``pay_to``; empty where this rail can't pay out. See ``paying``."""
        ...

    async def prepare_payout(self, to: str, amount: int, nonces: Nonces) -> Intent:
        """Sign a transfer of ``amount`` atomic units, to be stored before it goes to ``send``. Sends nothing.

        Raises ``RailUnavailable``: the wallet has too little of the asset or of gas money, the chain is out of reach,
        or this rail can't pay out; ``BadRequest`` for a recipient or an amount that no payout can have.
        """
        ...

    async def payout_outcome(self, claim: Claim) -> Outcome:
        """What became of a payout in ``sent``, ``unknown`` or ``settled``. Sends nothing: see ``Outcome.resend``."""
        ...


@runtime_checkable
class HintingRail(Rail, Protocol):
    """A rail whose offers hold something that changes by the second and binds nobody."""

    def hints(self) -> Json:
        """What goes into an offer's ``extra`` beside ``extra()``; never compared with what a payer echoes."""
        ...


@runtime_checkable
class ChargingRail(Rail, Protocol):
    """A rail with a method of its own in the ``Payment`` scheme, whose clients build payments in another way."""

    @property
    def charge_method(self) -> str: ...

    def charge_request(self, amount: int) -> str:
        """A new request for atomic units of the asset, as JSON in its one spelling; empty where there is none now."""
        ...

    def charged(self, memo: str) -> Rail:
        """The same rail for one such payment, whose challenge asked for ``memo``."""
        ...


class Landed(NamedTuple):
    """A payment as the chain shows it: ``amount`` in atomic units went to the rail's ``pay_to`` at Unix time ``at``."""

    payment_id: str
    payer: str
    amount: int
    transaction: str
    block: int
    block_hash: str
    log_index: int
    at: int


@runtime_checkable
class ScanningRail(Rail, Protocol):
    """A rail that can say what it was paid, without our store: for one that lost its last commits (J05)."""

    @property
    def sees_chain(self) -> bool:
        """Whether it has a node to ask; where not, the two methods raise ``RailUnavailable``. See ``scanning``."""
        ...

    async def head_block(self) -> int:
        """The highest block in which a payment counts by now. Raises ``RailUnavailable``."""
        ...

    def settled_since(self, block: int) -> AsyncGenerator[Landed]:
        """Every payment to ``pay_to`` in blocks from ``block`` to ``head_block``, oldest first.

        To be safe from reorganisations, start ``final_depth`` below the last ``head_block`` that was seen through: to
        hear of a payment twice does no harm. Raises ``RailUnavailable``; then it can be resumed at the last block.
        """
        ...


def paying(rail: Rail) -> PayingRail:
    """The rail as one that pays out. Raises ``ConfigError`` where it can't: the money is not in a wallet of ours."""
    if not isinstance(rail, PayingRail):
        raise ConfigError(f"the rail on {rail.network} can't pay out: it has no settlement wallet of ours")
    if not rail.payer_wallet:
        raise ConfigError(f"payouts on {rail.network} need the key of pay_to itself: {rail.pay_to} is not our wallet")
    return rail


def scanning(rail: Rail) -> ScanningRail | None:
    """The rail as one that can say what it was paid; None where it sees no chain."""
    return rail if isinstance(rail, ScanningRail) and rail.sees_chain else None
