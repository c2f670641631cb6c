"""The settlement's cost inside the price: rounded up, constant inside a window, bounded when it can't be read."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import ROUND_CEILING, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.evm_payments import NETWORK, PAY_TO, USDC
from tests.support.faulty_rpc import Fault, faulty_rpc
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.model import CHALLENGE_SECONDS, LEEWAY_SECONDS
from x402kit.networks import ChainlinkFeed, EvmOptions, EvmRail, FixedPrice, GasPolicy
from x402kit.networks.evm_fees import Fees, Price
from x402kit.networks.evm_reads import Chain
from x402kit.networks.gas import GasMeter
from x402kit.networks.rpc import Rpc

ETH = FixedPrice("2500.00")
WINDOW = 300
START = 1_800_000_000


class Clock:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Steady(Fees):
    """A gas price that does not come from the chain, so that sums can be worked out by hand."""

    def __init__(self, expected: int) -> None:
        self.expected = expected

    async def price(self) -> Price:
        return Price(self.expected, 0, self.expected)


@asynccontextmanager
async def meter(
    url: str, policy: GasPolicy, clock: Clock, *, expected: int = 10**9, asset: Any = USDC
) -> AsyncGenerator[GasMeter]:
    rpc = Rpc(url, seconds=1)
    made = GasMeter(policy, Chain(rpc), Steady(expected), asset, clock)
    try:
        yield made
    finally:
        await made.close()
        await rpc.close()


def by_hand(wei: int, usd: str, margin: int, decimals: int = 6) -> int:
    exact = Decimal(wei) * Decimal(usd) * (100 + margin) / 100 * Decimal(10) ** (decimals - 18)
    return int(exact.to_integral_value(ROUND_CEILING))


async def test_execution_and_l1_fee_and_margin(chain: EvmDevnet) -> None:
    chain.set_l1_fee(3_000_000_000_001)
    policy = GasPolicy(ETH, margin_percent=20, gas_units=100_000)
    async with meter(chain.rpc_url, policy, Clock()) as gas:
        assert await gas.refresh()
        wei = 100_000 * 10**9 + 3_000_000_000_001
        assert gas.surcharge() == by_hand(wei, "2500", 20) == 309_001
        assert gas.surcharges() == (309_001,)


@given(
    wei=st.integers(1, 10**15),
    cents=st.integers(1, 10**7),
    margin=st.integers(0, 100),
)
def test_E08_rounded_up_and_exact(wei: int, cents: int, margin: int) -> None:
    usd = f"{cents // 100}.{cents % 100:02d}"
    policy = GasPolicy(FixedPrice(usd), margin_percent=margin, gas_units=21_000, l1_fee=False)

    async def work_out() -> int:
        async with meter("http://127.0.0.1:1/", policy, Clock(), expected=wei) as gas:
            assert await gas.refresh()
            return gas.surcharge()

    assert asyncio.run(work_out()) == by_hand(21_000 * wei, usd, margin) >= 1


async def test_a_chainlink_feed_is_read_on_chain(chain: EvmDevnet) -> None:
    feed = chain.set_price_feed(2500_12345678, updated_at=START - 100)
    policy = GasPolicy(ChainlinkFeed(feed), margin_percent=0, gas_units=100_000, l1_fee=False)
    async with meter(chain.rpc_url, policy, Clock()) as gas:
        assert await gas.refresh()
        assert gas.surcharge() == by_hand(100_000 * 10**9, "2500.12345678", 0)
    feed = chain.set_price_feed(2500, updated_at=START, decimals=0)
    async with meter(chain.rpc_url, policy, Clock()) as gas:
        assert await gas.refresh()
        assert gas.surcharge() == 250_000


@pytest.mark.parametrize(
    ("answer", "age"), [(0, 0), (-1, 0), (2500_00000000, 7201), (2500_00000000, -LEEWAY_SECONDS - 1)]
)
async def test_a_stale_or_senseless_feed_is_no_price(chain: EvmDevnet, answer: int, age: int) -> None:
    feed = chain.set_price_feed(answer, updated_at=START - age)
    async with meter(chain.rpc_url, GasPolicy(ChainlinkFeed(feed), l1_fee=False), Clock()) as gas:
        assert not await gas.refresh()
        with pytest.raises(RailUnavailable):
            gas.surcharge()
        with pytest.raises(RailUnavailable):
            gas.check()


async def test_an_address_without_a_feed_is_no_price(chain: EvmDevnet) -> None:
    for address in (PAY_TO, chain.usdc):
        async with meter(chain.rpc_url, GasPolicy(ChainlinkFeed(address), l1_fee=False), Clock()) as gas:
            assert not await gas.refresh()


async def test_constant_inside_a_window_and_the_one_before_lives_on(chain: EvmDevnet) -> None:
    clock = Clock()
    feed = ChainlinkFeed(chain.set_price_feed(1000, updated_at=START, decimals=0))
    policy = GasPolicy(feed, margin_percent=0, gas_units=100_000, window_seconds=WINDOW, l1_fee=False)
    async with meter(chain.rpc_url, policy, clock) as gas:
        await gas.refresh()
        first = gas.surcharge()
        assert first == 100_000
        chain.set_price_feed(3000, updated_at=START, decimals=0)
        for seconds in (1, WINDOW - 1):
            clock.now = START + seconds
            assert await gas.refresh()
            assert gas.surcharges() == (first,)
        clock.now = START + WINDOW
        assert await gas.refresh()
        assert gas.surcharges() == (3 * first, first)
        clock.now = START + WINDOW + CHALLENGE_SECONDS + LEEWAY_SECONDS - 1
        assert gas.surcharges() == (3 * first, first)
        clock.now += 1
        assert gas.surcharges() == (3 * first,)


async def test_short_windows_keep_every_surcharge_whose_challenges_live(chain: EvmDevnet) -> None:
    clock = Clock()
    policy = GasPolicy(ETH, gas_units=100_000, window_seconds=60, l1_fee=False)
    async with meter(chain.rpc_url, policy, clock) as gas:
        seen: list[int] = []
        for step, price in enumerate((10**9, 2 * 10**9, 3 * 10**9)):
            gas._fees = Steady(price)  # pyright: ignore[reportPrivateUsage]  # the chain's gas price goes up
            clock.now = START + 60 * step
            await gas.refresh()
            seen.append(gas.surcharge())
        assert set(gas.surcharges()) == set(seen)
        assert len(set(seen)) == 3


async def test_the_last_price_stands_for_a_bounded_time(chain: EvmDevnet) -> None:
    clock = Clock()
    async with faulty_rpc(chain.rpc_url) as node:
        feed = ChainlinkFeed(chain.set_price_feed(2500, updated_at=START, decimals=0), max_age_seconds=10**6)
        policy = GasPolicy(feed, window_seconds=WINDOW, stale_seconds=600, l1_fee=False)
        async with meter(node.url, policy, clock) as gas:
            await gas.refresh()
            value = gas.surcharge()
            node.faults["eth_call"] = Fault(html=502)
            clock.now = START + WINDOW + 600
            assert not await gas.refresh()
            gas.check()
            clock.now += 1
            with pytest.raises(RailUnavailable):
                gas.check()
            assert gas.surcharge() == value
            node.faults.clear()
            assert await gas.refresh()
            gas.check()


async def test_an_l1_oracle_that_can_not_be_read_is_no_price(
    chain: EvmDevnet, caplog: pytest.LogCaptureFixture
) -> None:
    async with meter(chain.rpc_url, GasPolicy(ETH), Clock()) as gas:
        assert not await gas.refresh()  # Base has the oracle, this chain has none until it is put there
        assert not await gas.refresh()
        (told,) = caplog.messages
        assert told.startswith("ALERT: no gas price")
        chain.set_l1_fee(0)
        assert await gas.refresh()


async def test_only_op_chains_are_asked_for_an_l1_fee(chain: EvmDevnet) -> None:
    from dataclasses import replace

    elsewhere = replace(USDC, network="eip155:42161")
    async with meter(chain.rpc_url, GasPolicy(ETH), Clock(), asset=elsewhere) as gas:
        assert await gas.refresh()


async def test_the_rail_reads_at_start_and_in_the_background(chain: EvmDevnet) -> None:
    chain.set_l1_fee(10**12)
    wallet = None
    options = EvmOptions(rpc_seconds=2)
    policy = GasPolicy(ETH, window_seconds=1)
    rail = EvmRail(NETWORK, pay_to=PAY_TO, wallet=wallet, rpc=chain.rpc_url, gas=policy, options=options)
    with pytest.raises(RailUnavailable):
        rail.surcharge()
    await rail.start()
    try:
        first = rail.surcharge()
        assert rail.surcharges()[0] == first > 0
        await rail.ready()
        chain.set_l1_fee(10**15)
        for _ in itertools.takewhile(lambda _: rail.surcharge() == first, range(100)):
            await asyncio.sleep(0.05)
        assert rail.surcharge() > first
        assert first in rail.surcharges()
    finally:
        await rail.close()


async def test_without_a_policy_nothing_is_added(chain: EvmDevnet) -> None:
    rail = EvmRail(NETWORK, pay_to=PAY_TO)
    assert (rail.surcharge(), rail.surcharges()) == (0, (0,))
    with pytest.raises(ConfigError, match="rpc"):
        EvmRail(NETWORK, pay_to=PAY_TO, gas=GasPolicy(ETH))


@pytest.mark.parametrize("usd", ["", "0", "0.00", "-1", "2,500", "1e3", "$2500", "2500.123456789", 2500])
def test_L06_a_fixed_price_is_plain_digits(usd: Any) -> None:
    with pytest.raises(ConfigError):
        FixedPrice(usd)


@pytest.mark.parametrize(
    "wrong", [{"window_seconds": 0}, {"margin_percent": -1}, {"gas_units": 0}, {"stale_seconds": -1}]
)
def test_L06_a_policys_numbers_have_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GasPolicy(ETH, **wrong)
