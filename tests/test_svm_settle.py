"""Payments are settled on a real Solana runtime, and read back from it."""

from __future__ import annotations

from tests.support.svm_payments import PRICE, svm_seller
from x402kit.devnet import SvmDevnet


async def test_a_payment_is_settled_and_read_back(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        await shop.rail.ready()
        authorization = shop.authorize()
        assert (authorization.payer, authorization.amount) == (svm.accounts[1].address, PRICE)
        claim, outcome = await shop.settle(authorization)
        assert (outcome.state, outcome.reference, outcome.log_index) == ("settled", claim.reference, 2)
        assert outcome.block > 0
        assert shop.received() == PRICE
