"""M13: ten thousand calls against sellers that settle and then lose, deny or delay the answer. No socket, no thread.

The seller is the most hostile that there can be: it keeps, and settles, every authorization that it is ever shown. So a
call is paid twice if it shows two, and that must never happen, with an SDK's retries around it, a clock that jumps by
minutes, and processes that die at any step.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from httpx import Headers

from tests.support.battery import World, logical_call, setup_of
from tests.support.clients import KEY
from tests.support.paid_server import entry
from x402kit.client import KeyWallet, Limits
from x402kit.client.balance import Balance
from x402kit.client.core import Attempt, Setup
from x402kit.client.policy import Target
from x402kit.client.steps import Answer, Lost, Send
from x402kit.client.svm import SolanaWallet
from x402kit.client.wallets import Wallets
from x402kit.model import Json
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.svm_transaction import decode
from x402kit.protocols import x402
from x402kit.protocols.base58 import b58encode

RUNS = 10_000
SOLANA = DEFAULTS["solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"]
PAY_TO = b58encode(bytes(31) + b"\x07")
WINDOWS = (1, 6, 30, 60, 300, 3600)
CHALLENGES = {
    seconds: Headers(
        {x402.PAYMENT_REQUIRED: x402.encode_header({"x402Version": 2, "accepts": [entry(maxTimeoutSeconds=seconds)]})}
    )
    for seconds in WINDOWS
}
FAULTS = (
    "ok",
    "402",
    "bare 402",
    "403",
    "404",
    "409",
    "429",
    "500",
    "503",
    "504",
    "lost",
    "unsent",
    "broken",
    "crash",
    "cancel",
)


@dataclass
class _World(World):
    """``shown`` are the payments that it was given, ``settled`` those that landed, ``charged`` a balance's keys."""

    shown: list[str] = field(default_factory=list[str])
    settled: Counter[str] = field(default_factory=Counter[str])
    keys: list[str] = field(default_factory=list[str])
    charged: set[str] = field(default_factory=set[str])
    window: int = field(init=False)
    faults: list[str] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.window = self.random.choice(WINDOWS)
        self.faults = self.random.choices(FAULTS, k=self.random.randint(1, 6)) + ["ok"] * self.random.randint(0, 1)
        self.slow = self.random.choice((0.0, 1.0, 40.0, 600.0))

    def send(self, step: Send) -> Answer | Lost:
        self.wait()
        if not step.headers:
            return self.challenge()
        fault = self.random.choice(self.faults)
        if fault == "unsent":
            return Lost(OSError("no route"), sent=False)
        if "SIGN-IN-WITH-X" in step.headers:
            return self.prove(step.headers["Idempotency-Key"], fault)
        name, valid_before = self.read(x402.decode_header(step.headers["PAYMENT-SIGNATURE"])["payload"])
        self.shown.append(name)
        if self.now < valid_before and not self.settled[name]:
            self.settled[name] += 1
        return self.answer(fault)

    def challenge(self) -> Answer:
        return Answer(402, CHALLENGES[self.window])

    def read(self, payload: Json) -> tuple[str, float]:
        """What a payment is called, and until when it can land."""
        return payload["authorization"]["nonce"], int(payload["authorization"]["validBefore"])

    def prove(self, key: str, fault: str) -> Answer | Lost:
        """A balance: each key is charged once, and a refusal is the truth, as far as it goes."""
        self.keys.append(key)
        if fault not in ("402", "bare 402", "403", "404", "429"):
            self.charged.add(key)
        return self.answer(fault)


class _Solana(_World):
    """The same seller, paid on Solana: its offers bring a blockhash, which lives for 150 seconds at the most."""

    def challenge(self) -> Answer:
        extra = {"feePayer": PAY_TO, "recentBlockhash": b58encode(int(self.now).to_bytes(32, "big"))}
        offer = entry(network=SOLANA.network, asset=SOLANA.address, payTo=PAY_TO, extra=extra)
        required = x402.encode_header({"x402Version": 2, "accepts": [offer]})
        return Answer(402, Headers({x402.PAYMENT_REQUIRED: required}))

    def read(self, payload: Json) -> tuple[str, float]:
        sent = decode(base64.b64decode(payload["transaction"]))
        return sent.message.hex(), int.from_bytes(sent.blockhash, "big") + self.random.choice((60, 90, 150))


def _setup(clock: Callable[[], float], limits: Limits, mode: Balance = "off", solana: bool = False) -> Setup:
    wallets = Wallets(solana=SolanaWallet(bytes(range(32)))) if solana else Wallets(KeyWallet(KEY))
    return setup_of(wallets, limits, clock, mode)


def _target(name: str) -> Target:
    digest = hashlib.sha256(name.encode()).digest()
    origin = "https://seller.example"
    return Target("POST", origin + "/" + name, "seller.example", 443, True, digest, origin, origin)


def _calls(kind: type[_World], runs: int, limits: Limits, mode: Balance = "off") -> Iterator[tuple[_World, str]]:
    """So many calls by one payer, each at a seller of its own; the seller, and how the call ended."""
    world = kind(0)
    setup = _setup(lambda: world.now, limits, mode, solana=kind is _Solana)
    for seed in range(runs):
        world = kind(seed, now=world.now + 20_000)
        target = _target(str(seed))
        yield world, logical_call(lambda: Attempt(setup, target), world)  # noqa: B023  # used at once


def _insists(kind: type[_World], runs: int) -> None:
    """Five logical calls for one request, each only after the one before has ended."""
    for seed in range(runs):
        world = kind(seed)
        setup = _setup(lambda: world.now, Limits(per_call="$0.01"), solana=kind is _Solana)  # noqa: B023  # used at once
        for _ in range(5):
            before = set(world.shown)
            logical_call(lambda: Attempt(setup, _target("same")), world)  # noqa: B023
            assert len(set(world.shown) - before) <= 1
            live = [row for row in setup.journal.payments(only_open=True) if row.valid_before > world.now]
            assert len(live) <= 1


def test_M13_no_call_is_ever_paid_twice_whatever_the_seller_does() -> None:
    ends: Counter[str] = Counter()
    for world, end in _calls(_World, RUNS, Limits(per_call="$0.01")):
        ends[end] += 1
        assert len(set(world.shown)) <= 1, f"seed {world.seed}: two payments were shown"
        assert world.settled.total() <= 1, f"seed {world.seed}: paid twice"
        if end == "200":
            assert world.shown, f"seed {world.seed}: served without a payment"
    assert set(ends) >= {"200", "403", "404", "503", "died", "PaymentNotAccepted", "PaymentOutcomeUnknown"}


def test_M13_no_call_on_solana_is_ever_paid_twice_whatever_the_seller_does() -> None:
    ends: Counter[str] = Counter()
    for world, end in _calls(_Solana, RUNS // 5, Limits(per_call="$0.01")):
        ends[end] += 1
        assert len(set(world.shown)) <= 1, f"seed {world.seed}: two payments were shown"
        assert world.settled.total() <= 1, f"seed {world.seed}: paid twice"
    assert set(ends) >= {"200", "403", "404", "503", "died", "PaymentNotAccepted", "PaymentOutcomeUnknown"}


def test_M13_on_solana_the_same_request_again_never_has_two_payments_that_can_land() -> None:
    """The caller insists: a new one is signed only when the blockhash of the one before is dead for certain."""
    _insists(_Solana, 300)


def test_M13_a_call_from_the_balance_is_charged_once_and_never_paid_as_well() -> None:
    """The balance first: whatever is lost, no second key is used, and no payment made after a doubt."""
    ends: Counter[str] = Counter()
    both = 0
    for world, end in _calls(_World, RUNS // 3, Limits(per_call="$0.01", hosts=["seller.example"]), "first"):
        ends[end] += 1
        assert len(set(world.shown)) <= 1, f"seed {world.seed}: two payments were shown"
        assert len(world.charged) + world.settled.total() <= 1, f"seed {world.seed}: paid twice"
        both += bool(world.keys and world.shown)
        if end == "200":
            assert world.charged or world.shown, f"seed {world.seed}: served without a payment"
    assert both > 100
    assert set(ends) >= {"200", "402", "404", "503", "died", "PaymentNotAccepted", "PaymentOutcomeUnknown"}


def test_M13_the_same_request_again_never_has_two_payments_in_doubt() -> None:
    """The caller insists."""
    _insists(_World, 500)


def test_M13_a_budget_holds_all_that_was_settled_whatever_the_seller_said() -> None:
    world = _World(0)
    setup = _setup(lambda: world.now, Limits(per_call="$0.01", per_day="$0.50"))
    settled, refused = 0, 0
    for seed in range(300):
        world = _World(seed, now=1_800_000_000 - 1_800_000_000 % 86400)
        world.faults = [*world.faults, "ok"]
        world.slow = 0.0
        target = _target(str(seed))
        refused += logical_call(lambda: Attempt(setup, target), world) == "TooDear"  # noqa: B023
        settled += world.settled.total()
    _, day = setup.journal.spent(setup.wallets.address, int(world.now))
    assert settled * 10_000 <= day <= 500_000
    assert refused > 100
