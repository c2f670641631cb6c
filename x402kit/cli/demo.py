"""``x402kit demo``: a seller, a payer and a chain on this machine, and money that really moves between them."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx

from ..client import PaymentInfo, Proposal, payment_of
from ..devnet.errors import DevnetError
from ..model import Json
from ..money import format_units
from .demo_rails import RAILS, DemoRail, Transfer
from .demo_server import serve
from .devnet import Stoppable
from .output import bold, dim, error, green, plain, red
from .report import network_text
from .status import ERROR, INTERRUPTED, OK

__all__ = ["add", "run"]

_DESCRIPTION = """Start local chains, a seller (examples/inference.py under uvicorn) and a payer; pay for a fixed price,
for a chat completion and for a streamed one, on each rail; show what moved on chain; stop everything.

Nothing leaves this machine. Status 0 when every balance adds up to the atomic unit, else 1.
"""
_PER_CALL: Final = "$0.05"
_PER_DAY: Final = "$1"


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "demo",
        help="a seller, a payer and a chain on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it; status 1 when something did not add up."""
    with Stoppable():
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            rails = [stack.enter_context(make()) for make in RAILS]
            seller = stack.enter_context(serve(rails))
            print(f"{bold('seller')}   {seller.url}, examples/inference.py")
            rounds = [_Round(rail, seller.url).run() for rail in rails]
            good = all(rounds)
            if not good:
                error(f"the seller's log:\n{seller.log()}")
        print(dim(f"\nEverything is stopped again. {time.monotonic() - started:.1f} s."))
        return OK if good else ERROR
    return INTERRUPTED


class _Round:
    """The same calls on one rail, and the sums afterwards."""

    def __init__(self, rail: DemoRail, url: str) -> None:
        self._rail = rail
        self._asset = rail.asset
        self._url = url
        self._paid: list[tuple[PaymentInfo, Transfer]] = []
        self._calls = 0

    def run(self) -> bool:
        """Whether everything was answered, and the money adds up."""
        rail = self._rail
        print(f"{bold('chain')}    {rail.about}")
        print(f"{bold('payer')}    {rail.payer}, at most {_PER_CALL} a call and {_PER_DAY} a day")
        before = self._balances("before")
        payer = rail.wallet(_PER_CALL, _PER_DAY, self._asked)
        with contextlib.closing(payer), httpx.Client(transport=payer.transport(), base_url=self._url) as client:
            try:
                self._weather(client)
                self._chat(client)
                self._streamed_chat(client)
            except (httpx.HTTPError, DevnetError, ValueError) as e:
                error(f"{type(e).__name__}: {e}")
                return False
        return self._sums(before, self._balances("after"))

    # The calls

    def _weather(self, client: httpx.Client) -> None:
        self._call("GET /v1/weather", "a fixed price")
        answer = client.get("/v1/weather", params={"city": "Lisbon"})
        self._settled(answer)
        print(f"   {answer.status_code}    {plain(answer.text)}")

    def _chat(self, client: httpx.Client) -> None:
        body = _question("What is HTTP status 402 for?", 24)
        self._call("POST /v1/chat/completions", "a price by prompt and max_tokens")
        answer = client.post("/v1/chat/completions", json=body)
        self._settled(answer)
        made = answer.json()
        print(f"   {answer.status_code}    {plain(made['choices'][0]['message']['content'])}")
        print(dim(f"          {_usage(made['usage'])}"))

    def _streamed_chat(self, client: httpx.Client) -> None:
        body = {**_question("And streamed?", 32), "stream": True, "stream_options": {"include_usage": True}}
        self._call("POST /v1/chat/completions", "the same, streamed")
        usage: Json | None = None
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            self._settled(answer)
            print(f"   {answer.status_code}    ", end="")
            for event in _events(answer):
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    print(plain(choice["delta"].get("content", "")), end="", flush=True)
        print()
        if usage is None:
            raise ValueError("the stream ended without its usage")
        print(dim(f"          {_usage(usage)}"))

    # What is shown of each

    def _call(self, what: str, why: str) -> None:
        self._calls += 1
        print(f"\n{bold(f'{self._calls}  {what}')}  {dim(why)}")

    def _asked(self, proposal: Proposal) -> bool:
        """The payer's own word before it signs."""
        words = f"  {proposal.description}" if proposal.description else ""
        print(f"   402    asks {proposal.price} on {network_text(proposal.network)} to {proposal.pay_to}{dim(words)}")
        return True

    def _settled(self, answer: httpx.Response) -> None:
        info = payment_of(answer)
        if answer.status_code != 200 or info is None or not info.verified:
            answer.read()
            raise ValueError(
                f"status {answer.status_code}, {info.problem if info else 'not paid'}: {answer.text[:500]}"
            )
        transfer = self._rail.transfer(info.transaction)
        self._paid.append((info, transfer))
        print(f"   paid   {self._money(transfer.amount)} in block {transfer.block}, transaction {transfer.transaction}")

    def _money(self, amount: int) -> str:
        return f"{format_units(amount, self._asset.decimals)} {self._asset.symbol}"

    def _balances(self, when: str) -> tuple[int, int]:
        payer, seller = (self._rail.balance_of(address) for address in (self._rail.payer, self._rail.seller))
        print(f"\n{bold(f'{when:<6}')}   payer {self._money(payer)}, seller {self._money(seller)}")
        return payer, seller

    def _sums(self, before: tuple[int, int], after: tuple[int, int]) -> bool:
        """Receipts, transfers on chain and both balances say the same, to the atomic unit."""
        sums = {
            "the receipts": sum(info.amount for info, _ in self._paid),
            "the transfers": sum(transfer.amount for _, transfer in self._paid),
            "the payer paid": before[0] - after[0],
            "the seller got": after[1] - before[1],
        }
        parties = {(transfer.payer, transfer.pay_to) for _, transfer in self._paid}
        good = len(set(sums.values())) == 1 and parties == {(self._rail.payer, self._rail.seller)}
        good = good and len({transfer.transaction for _, transfer in self._paid}) == self._calls
        print(f"{bold('sum')}      of {self._calls} calls")
        for what, amount in sums.items():
            print(f"         {what:<15} {self._money(amount):>14}")
        print("         " + (green("It adds up.") if good else red("It does not add up.")))
        sys.stdout.flush()
        return good


def _question(text: str, most: int) -> Json:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": most}


def _usage(usage: Json) -> str:
    return f"{usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written"


def _events(answer: httpx.Response) -> Iterator[Json]:
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])
