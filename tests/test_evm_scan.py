"""What we were paid, read from the chain alone: for a store that lost its last commits (J05)."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from tests.support.evm_payments import (
    PAY_TO,
    PRICE,
    USDC,
    Seller,
    cancel,
    seller,
    sign,
    submit,
)
from tests.support.faulty_rpc import Fault, faulty_rpc
from tests.test_evm_outcome import NONCES, PAYER, moved, used
from x402kit.devnet import EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.errors import RailUnavailable
from x402kit.networks import Base
from x402kit.networks.evm import Transfer
from x402kit.networks.evm_abi import transfer_data
from x402kit.networks.evm_logs import landings
from x402kit.networks.evm_reads import Receipt
from x402kit.networks.port import Landed, scanning

THIRD = "0x00000000000000000000000000000000000000c3"


async def scan(rail: Any, block: int = 0) -> list[Landed]:
    async with aclosing(rail.settled_since(block)) as found:
        return [landed async for landed in found]


def head(chain: EvmDevnet) -> int:
    return int(chain.rpc("eth_blockNumber"), 16)


def signed_to(chain: EvmDevnet, to: str, nonce: bytes) -> Transfer:
    """An authorization of the payer's, to anyone."""
    payer = chain.accounts[1]
    return sign(Transfer(payer.address.lower(), to.lower(), PRICE, 0, 2**40, nonce, b""), payer)


def pay_plainly(chain: EvmDevnet, to: str, amount: int) -> None:
    """The payer sends money without any authorization."""
    data = encode("transfer(address,uint256)", to, amount)
    sent = chain.rpc("eth_sendTransactionSync", {"from": chain.accounts[1].address, "to": chain.usdc, "data": data})
    assert sent["status"] == "0x1"


async def pay(shop: Seller, times: int) -> list[Landed]:
    """Settle some payments; each as the scan must show it."""
    paid: list[Landed] = []
    for _ in range(times):
        authorization = shop.authorize()
        claim, outcome = await shop.settle(authorization)
        assert outcome.state == "settled"
        at = int(shop.chain.rpc("eth_getBlockByNumber", hex(outcome.block), False)["timestamp"], 16)
        found = (outcome.block, outcome.block_hash, outcome.log_index, at)
        paid.append(Landed(authorization.payment_id, claim.payer, PRICE, claim.reference, *found))
    return paid


async def test_J05_every_settlement_is_found_as_it_was_claimed(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        paid = await pay(shop, 3)
        assert await scan(shop.rail) == paid
        assert await scan(shop.rail, paid[1].block) == paid[1:]
        assert await scan(shop.rail, paid[2].block + 1) == []
        assert await shop.rail.head_block() == head(chain) == paid[2].block


async def test_J05_what_somebody_else_submitted_is_found_too(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        authorization = shop.authorize()
        theirs = submit(chain, transfer_data(authorization.body))
        (landed,) = await scan(shop.rail)
        assert (landed.payment_id, landed.transaction) == (authorization.payment_id, theirs)


async def test_J05_what_is_no_payment_to_us_is_not_listed(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        pay_plainly(chain, PAY_TO, PRICE)
        submit(chain, transfer_data(signed_to(chain, THIRD, NONCES[0])))
        cancel(chain, chain.accounts[1], NONCES[1])
        nothing = Transfer(chain.accounts[1].address.lower(), PAY_TO.lower(), 0, 0, 2**40, NONCES[2], b"")
        submit(chain, transfer_data(sign(nothing, chain.accounts[1])))
        assert await scan(shop.rail) == []
        paid = await pay(shop, 1)
        assert await scan(shop.rail) == paid


async def test_J05_only_what_counts_by_now(chain: EvmDevnet) -> None:
    """As deep as the rail asks for; the head that goes with it is where the next scan begins."""
    async with seller(chain, confirmations=2) as shop:
        authorization = shop.authorize()
        submit(chain, transfer_data(authorization.body))
        assert await scan(shop.rail) == []
        seen = await shop.rail.head_block()
        chain.mine(2)
        (landed,) = await scan(shop.rail, seen + 1)
        assert landed.payment_id == authorization.payment_id


RANGES = {
    "refused": Fault(error={"code": -32600, "message": "block range too wide"}),
    "over the limit": Fault(error={"code": -32005, "message": "query returned more than 10000 results"}),
    "too large": Fault(text='{"jsonrpc": "2.0", "id": 1, "result": "' + "0" * 5_000_000 + '"}'),
}


@pytest.mark.parametrize("name", sorted(RANGES))
async def test_J05_in_parts_as_small_as_the_node_wants_them(chain: EvmDevnet, name: str) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        start = head(chain)
        paid = await pay(shop, 1)
        chain.mine(300)
        paid += await pay(shop, 2)
        chain.mine(200)
        node.faults["eth_getLogs"] = replace(RANGES[name], when=_is_wide)
        assert await scan(shop.rail, start) == paid
        assert node.seen["eth_getLogs"] >= 6


def _is_wide(params: list[Any]) -> bool:
    return int(params[0]["toBlock"], 16) - int(params[0]["fromBlock"], 16) >= 130


TROUBLE: dict[str, dict[str, Fault]] = {
    "down": {"*": Fault(html=502)},
    "no logs": {"eth_getLogs": Fault(html=502)},
    "every range refused": {"eth_getLogs": Fault(error={"code": -32600, "message": "no"})},
    "junk": {"eth_getLogs": Fault(result={"no": "list"})},
    "a receipt is missing": {"eth_getTransactionReceipt": Fault(result=None)},
    "a receipt is refused": {"eth_getTransactionReceipt": Fault(error={"code": -32000, "message": "no"})},
    "another block": {"eth_getBlockByNumber": Fault(change=lambda block: {**block, "hash": "0x" + "ee" * 32})},
}


@pytest.mark.parametrize("name", sorted(TROUBLE))
async def test_J05_what_can_not_be_read_is_not_passed_over(chain: EvmDevnet, name: str) -> None:
    async with faulty_rpc(chain.rpc_url) as node, seller(chain, rpc=node.url) as shop:
        paid = await pay(shop, 2)
        node.faults.update(TROUBLE[name])
        with pytest.raises(RailUnavailable) as caught:
            await scan(shop.rail)
        assert "http" not in str(caught.value) + caught.value.detail
        node.faults.clear()
        assert await scan(shop.rail) == paid


async def test_J05_a_reorganised_payment_is_no_longer_listed(own_chain: EvmDevnet) -> None:
    chain = own_chain
    chain.mine(5)
    async with seller(chain) as shop:
        paid = await pay(shop, 1)
        assert await scan(shop.rail) == paid
        chain.set_automine(False)
        chain.rpc("anvil_reorg", 2, [])
        assert await scan(shop.rail) == []


async def test_J05_through_a_facilitator_the_chain_is_read_where_there_is_one(chain: EvmDevnet) -> None:
    async with seller(chain) as shop:
        paid = await pay(shop, 1)
    seeing = Base(pay_to=PAY_TO, facilitator="http://127.0.0.1:9", rpc=chain.rpc_url)
    rail = scanning(seeing)
    assert rail is not None
    assert await scan(rail) == paid
    assert await rail.head_block() == head(chain)
    await seeing.close()
    blind: Any = Base(pay_to=PAY_TO, facilitator="http://127.0.0.1:9")
    assert scanning(blind) is None
    with pytest.raises(RailUnavailable):
        await scan(blind)
    with pytest.raises(RailUnavailable):
        await blind.head_block()


OTHER = "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc"


@pytest.mark.parametrize(
    ("logs", "found"),
    [
        ([used(NONCES[0]), moved()], [(0, PRICE, 1)]),
        ([used(NONCES[0]), moved(), used(NONCES[1]), moved(5)], [(0, PRICE, 1), (1, 5, 3)]),
        ([used(NONCES[0]), used(NONCES[1]), moved()], [(1, PRICE, 2)]),  # no transfer counts for two
        ([used(NONCES[0]), moved(to=OTHER), moved()], []),  # it went elsewhere; the second is a plain transfer
        ([used(NONCES[0]), moved(payer=OTHER), moved()], [(0, PRICE, 2)]),
        ([used(NONCES[0], payer=OTHER), moved()], []),
        ([used(NONCES[0], address=PAY_TO), moved()], []),
        ([used(NONCES[0]), moved(address=PAY_TO)], []),
        ([replace(used(NONCES[0]), topics=used(NONCES[0]).topics[:2]), moved()], []),
        ([used(NONCES[0]), replace(moved(), data=b"")], []),
        ([moved()], []),
        ([], []),
    ],
)
def test_I3_B11_one_transfer_for_one_authorization(logs: list[Any], found: list[tuple[int, int, int]]) -> None:
    numbered = tuple(replace(log, index=i) for i, log in enumerate(logs))
    made = landings(Receipt("0x", True, 1, "0x", numbered), USDC.address.lower(), PAY_TO.lower())
    assert [(NONCES.index(t.nonce), t.value, index) for t, index in made if t.payer == PAYER] == found
