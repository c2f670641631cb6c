"""The payer's core under a hostile seller, for thousands of calls (M13): no socket, no thread.

The driver is a loop over the core's steps, with an SDK's retries around it, a clock that jumps, and processes that die.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from httpx import Headers

from x402kit.client import Limits, PayerError, PaymentInfo
from x402kit.client.balance import Balance, BalanceSetup
from x402kit.client.core import Attempt, Setup
from x402kit.client.journal import Journal
from x402kit.client.policy import Policy
from x402kit.client.sellers import Sellers
from x402kit.client.steps import Answer, Ask, Body, Drop, Lost, Send, Sleep, Step, Store, Work
from x402kit.client.wallets import Wallets

__all__ = ["BACKOFF", "RETRIES", "Died", "World", "logical_call", "setup_of"]

RETRIES, BACKOFF = 2, 0.5


class Died(BaseException):
    """The process ends here: nothing after it runs."""


class _Broken(Exception):
    """The body broke: what an SDK retries."""


@dataclass
class World:
    """The clock, and a seller with a mood: each of its answers may take ``slow`` seconds."""

    seed: int
    now: float = 1_800_000_000.0
    random: random.Random = field(init=False)
    slow: float = field(init=False)
    last: Answer | Lost = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def wait(self) -> None:
        self.now += self.random.random() * self.slow

    def send(self, step: Send) -> Answer | Lost:
        raise NotImplementedError

    def challenge(self) -> Answer:
        raise NotImplementedError

    def work(self, action: Callable[[], Any]) -> Any:
        """The payer's own work: its journal, its wallet."""
        return action()

    def answer(self, fault: str) -> Answer | Lost:
        """The answer of that name, or what stands in its place; a number is a status."""
        match fault:
            case "lost" | "unsent":
                return Lost(TimeoutError(), sent=fault == "lost")
            case "crash":
                raise Died
            case "cancel":
                raise KeyboardInterrupt
            case "402":
                return self.challenge()
            case "bare 402":
                return Answer(402, Headers())
            case "ok" | "broken":
                return Answer(200, Headers({"x-fault": fault}))
            case _:
                return Answer(int(fault), Headers())


def setup_of(wallets: Wallets, limits: Limits, clock: Callable[[], float], mode: Balance = "off") -> Setup:
    """A payer with a journal in memory."""
    policy, journal = Policy(limits, kinds=wallets.kinds), Journal()
    balance = BalanceSetup(
        mode, wallets, policy, journal, Sellers(), lambda: int(clock()), retries=RETRIES, backoff=BACKOFF
    )
    return Setup(
        wallets=wallets,
        policy=policy,
        journal=journal,
        clock=clock,
        asks=False,
        max_validity=600,
        max_signatures=1,
        retries=RETRIES,
        backoff=BACKOFF,
        read_timeout=35,
        balance=balance,
    )


def logical_call(attempt: Callable[[], Attempt], world: World) -> str:
    """An SDK around the transport, at its most stubborn: it tries three times, after any error and any bad status."""
    end = ""
    for _ in range(3):
        try:
            status = _drive(attempt(), world)
        except KeyboardInterrupt:
            return "KeyboardInterrupt"
        except Died:  # another process goes on with the same call
            end = "died"
        except (PayerError, _Broken, OSError) as error:
            end = type(error).__name__
        else:
            end = str(status)
            if status < 400:
                break
        world.now += world.random.choice((0.5, 8.0, 60.0))
    return end


def _drive(attempt: Attempt, world: World) -> int:
    """What transport.py does, with the world in the place of the network; the answer's status."""
    steps, value = attempt.steps(), None
    try:
        while True:
            value = _step(steps.send(value), world)
    except StopIteration as stop:
        info: PaymentInfo | None = stop.value
    except Died:
        raise
    except BaseException as error:
        attempt.interrupted(error)
        raise
    assert isinstance(world.last, Answer)
    if world.last.headers.get("x-fault") == "broken":
        broken = _Broken()
        attempt.interrupted(broken)
        raise broken
    if info is not None:
        attempt.completed(info)
    return world.last.status


def _step(step: Step, world: World) -> Any:
    match step:
        case Send():
            world.last = world.send(step)
            return world.last
        case Store() | Work():
            return world.work(step.action)
        case Sleep():
            world.now += step.seconds
            return None
        case Body():
            return b""
        case Drop() | Ask():
            return None
