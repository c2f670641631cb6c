"""M13 on Lightning: sellers and nodes that lose, deny, delay and forget, and processes that die. No socket.

The seller takes every preimage that it is shown, and answers as it likes;
the node moves the money of every invoice that it is asked to pay and that has not failed, and tells of it what it
likes. A call is paid twice if the money of two invoices has moved, or still may, and that must never happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import pytest
from httpx import Headers

from tests.support.battery import BACKOFF, RETRIES, Died, World, logical_call, setup_of
from tests.support.made_invoice import made_invoice
from x402kit.client import Limits
from x402kit.client.bitcoin import CoinPrice
from x402kit.client.core import Attempt, Setup
from x402kit.client.lightning import LightningPayments
from x402kit.client.lightning_wallet import LightningWallet
from x402kit.client.policy import Target
from x402kit.client.steps import Answer, Lost, Send
from x402kit.client.wallets import Wallets
from x402kit.errors import RailUnavailable
from x402kit.networks.lightning_port import REGTEST, PaymentState
from x402kit.protocols.bolt11 import decode

RUNS = 2000
PRICE = 21_000
SERVER = (
    "ok",
    "402",
    "bare 402",
    "401",
    "403",
    "404",
    "409",
    "429",
    "500",
    "504",
    "lost",
    "unsent",
    "broken",
    "cancel",
)
NODE = ("ok", "fails", "away", "silent", "slow", "stuck", "deaf", "liar")
"""away: not asked; silent: paid, and pending is told; slow: under way for a while; stuck: for good; deaf: not heard."""


@dataclass
class _World(World):
    """A node beside the seller, with moods of its own. ``moved`` are the invoices whose money has moved, or may."""

    network: str = REGTEST
    preimages: dict[str, bytes] = field(default_factory=dict[str, bytes])
    offered: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    known: dict[str, PaymentState] = field(default_factory=dict[str, PaymentState])
    until: dict[str, float] = field(default_factory=dict[str, float])
    shown: list[str] = field(default_factory=list[str])
    moved: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.faults = self.random.choices(SERVER, k=self.random.randint(1, 5)) + ["ok"] * self.random.randint(0, 1)
        self.moods = self.random.choices(NODE, k=self.random.randint(1, 4)) + ["ok"] * self.random.randint(0, 2)
        self.life = self.random.choice((20, 60, 600, 3600))
        self.slow = self.random.choice((0.0, 1.0, 40.0, 600.0))
        self.deaths = self.random.choice((0.0, 0.0, 0.2))

    def send(self, step: Send) -> Answer | Lost:
        self.wait()
        value = step.headers.get("Authorization", "")
        if not value:
            return self.challenge()
        preimage = value.rpartition(":")[2]
        paid = sha256(bytes.fromhex(preimage)).hexdigest()
        assert paid in self.moved
        self.shown.append(paid)
        return self.answer(self.random.choice(self.faults))

    def line(self) -> str:
        """An invoice that is open is often offered again."""
        if not self.offered or self.offered[-1][2] < self.now or self.random.random() < 0.5:
            preimage = self.random.randbytes(32)
            payment_hash = sha256(preimage).hexdigest()
            self.preimages[payment_hash] = preimage
            text = made_invoice(payment_hash, PRICE, int(self.now), self.life)
            self.offered.append((payment_hash, text, int(self.now) + self.life))
        payment_hash, text, _ = self.offered[-1]
        return f'L402 token="{payment_hash}", invoice="{text}"'

    def challenge(self) -> Answer:
        return Answer(402, Headers(), (self.line(),))

    # The node

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        invoice = decode(bolt11)
        self.wait()
        known = self.known.get(invoice.payment_hash)
        if known is not None and known.state in ("pending", "succeeded"):
            return known
        if invoice.expires_at <= self.now:
            return PaymentState("failed", reason="expired")
        return self.paid(invoice.payment_hash, self.random.choice(self.moods))

    def paid(self, payment_hash: str, mood: str) -> PaymentState:
        good = PaymentState("succeeded", self.preimages[payment_hash].hex(), self.random.randint(0, 5000))
        match mood:
            case "away":
                raise RailUnavailable
            case "deaf":
                return PaymentState("pending")
            case "fails":
                self.known[payment_hash] = PaymentState("failed", reason="no_route")
                return self.known[payment_hash]
            case _:
                pass
        self.moved.add(payment_hash)
        self.known[payment_hash] = good
        if mood in ("slow", "stuck"):
            self.known[payment_hash] = PaymentState("pending")
            self.until[payment_hash] = self.now + (90.0 if mood == "slow" else 1e9)
        if mood == "liar":
            return good._replace(preimage="11" * 32)
        return good if mood == "ok" else PaymentState("pending")

    async def payment(self, payment_hash: str) -> PaymentState:
        self.wait()
        if self.random.choice(self.moods) == "away":
            raise RailUnavailable
        known = self.known.get(payment_hash, PaymentState("unknown"))
        if known.state == "pending" and self.until[payment_hash] < self.now:
            if self.random.random() < 0.5:  # it came back
                self.moved.discard(payment_hash)
                self.known[payment_hash] = PaymentState("failed", reason="timeout")
            else:
                self.known[payment_hash] = PaymentState("succeeded", self.preimages[payment_hash].hex())
            return self.known[payment_hash]
        return known

    def work(self, action: Callable[[], Any]) -> Any:
        self._may_die()
        done = action()
        self._may_die()
        return done

    def _may_die(self) -> None:
        if self.random.random() < self.deaths:
            raise Died


class _Everywhere:
    """The node of whichever world it is."""

    network = REGTEST

    def __init__(self) -> None:
        self.world = _World(0)

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        return await self.world.pay(bolt11, max_fee=max_fee, timeout_seconds=timeout_seconds)

    async def payment(self, payment_hash: str) -> PaymentState:
        return await self.world.payment(payment_hash)


@pytest.fixture
def node() -> _Everywhere:
    return _Everywhere()


@pytest.fixture
def setup(node: _Everywhere) -> Iterator[Setup]:
    wallets = Wallets(lightning=LightningWallet(node))
    assert wallets.lightning is not None
    made = setup_of(wallets, Limits(per_call="$0.03"), lambda: node.world.now)
    price = CoinPrice("100000")
    lightning = LightningPayments(wallets.lightning, price, made.journal, made.now, RETRIES, BACKOFF)
    yield replace(made, lightning=lightning)
    wallets.lightning.close()


def _target(name: str) -> Target:
    digest = sha256(name.encode()).digest()
    origin = f"https://{name}.example"
    return Target("GET", origin + "/", f"{name}.example", 443, True, digest, origin, origin)


def test_M13_no_call_is_ever_paid_by_two_invoices(setup: Setup, node: _Everywhere) -> None:
    ends: Counter[str] = Counter()
    for seed in range(RUNS):
        world = node.world = _World(seed, now=node.world.now + 20_000)
        target = _target(f"s{seed}")
        end = logical_call(lambda: Attempt(setup, target), world)  # noqa: B023  # used at once
        ends[end] += 1
        assert len(world.moved) <= 1, f"seed {seed}: two invoices were paid"
        assert len(set(world.shown)) <= 1, f"seed {seed}: two payments were shown"
        if end == "200":
            assert world.shown, f"seed {seed}: served without a payment"
    assert set(ends) >= {"200", "403", "404", "504", "died", "PaymentNotAccepted", "PaymentOutcomeUnknown"}


def test_M13_the_same_request_again_never_has_two_invoices_in_doubt(setup: Setup, node: _Everywhere) -> None:
    """The caller insists: a new invoice is paid only when the one before was served, refused, or has failed."""
    for seed in range(RUNS // 10):
        world = node.world = _World(seed, now=node.world.now + 200_000)
        target = _target(f"s{seed}")
        for _ in range(6):
            before = set(world.moved)
            logical_call(lambda: Attempt(setup, target), world)  # noqa: B023
            assert len(world.moved - before) <= 1, f"seed {seed}"
            undecided = [each for each in world.moved if world.known[each].state == "pending"]
            assert len(undecided) <= 1, f"seed {seed}"


def test_M04_what_is_counted_is_what_has_moved_or_may(setup: Setup, node: _Everywhere) -> None:
    """No more is given back than certainly did not move: whatever fails, and whoever dies in between."""
    for seed in range(RUNS // 10):
        world = node.world = _World(seed, now=node.world.now - node.world.now % 86_400 + 86_400)
        world.slow = 0.0
        target = _target(f"s{seed}")
        for _ in range(4):
            logical_call(lambda: Attempt(setup, target), world)  # noqa: B023
        _, day = setup.journal.spent(setup.wallets.address, int(world.now))
        assert day >= len(world.moved) * PRICE, f"seed {seed}"
