"""An agent with a budget: it keeps a small balance at its seller, calls from it, and stops when the budget is used up.

    X402KIT_EVM_KEY=0x… python examples/agent.py http://127.0.0.1:8000 [budget a day, e.g. '$0.05']

It calls examples/inference.py, served at that very address, as X402KIT_ORIGIN there must say. What it signs is written
down in agent.db first: killed and started again, it knows what it paid today, and a payment or a call whose answer was
lost is made again as the same one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import httpx

from x402kit.client import BalanceTooLow, Limits, Payer, PayerError, Proposal, TooDear, payment_of
from x402kit.money import format_units

CITIES = ("Lisbon", "Rome", "Oslo", "Cairo", "Lima", "Quito")
STEP = "0.01"
"""So many dollars are put on the balance at a time: no more than that is ever left with the seller for nothing."""


class Agent:
    """Reads the weather of one city after another and has it put into words, as long as the budget lasts."""

    def __init__(self, base_url: str, key: str, budget: str, journal: str = "agent.db") -> None:
        self.payer = Payer(
            evm_key=key,
            limits=Limits(per_call="$0.02", per_day=budget),
            journal=journal,
            approve=self.approve,
            balance="only",
            allow_insecure=base_url.startswith("http://127.0.0.1"),
        )
        self.client = httpx.Client(base_url=base_url, transport=self.payer.transport(), timeout=60)
        self.wallet = self.payer.wallet(f"{base_url}/v1/x402", self.client)
        self.spent = 0

    def approve(self, proposal: Proposal) -> bool:
        """Asked before each payment is signed, when the limits allow it. This agent wants to pay one seller only."""
        return proposal.url.startswith(str(self.client.base_url))

    def weather(self, city: str) -> str:
        answer = self.call(lambda: self.client.get("/v1/weather", params={"city": city}))
        return f"{answer.json()['weather']} in {city}"

    def words(self, text: str) -> str:
        question = {"role": "user", "content": f"Put this into words: {text}"}
        body = {"model": "demo", "messages": [question], "max_tokens": 40}
        answer = self.call(lambda: self.client.post("/v1/chat/completions", json=body))
        return str(answer.json()["choices"][0]["message"]["content"])

    def call(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Make a call; where the balance is too low for it, a step of the budget goes there first."""
        while True:
            try:
                answer = send()
                break
            except BalanceTooLow:
                made = self.wallet.top_up(STEP)  # TooDear, when the day's budget is used up
                print(f"  topped up ${dollars(made.credited)}, {made.transaction}")
        answer.raise_for_status()
        paid = payment_of(answer)
        if paid is not None:
            self.spent += paid.amount
            print(f"  ${dollars(paid.amount)} for {answer.request.method} {answer.request.url.path}")
        return answer

    def run(self) -> Iterator[str]:
        for city in CITIES:
            yield self.words(self.weather(city))

    def close(self) -> None:
        self.client.close()
        self.payer.close()


def dollars(amount: int) -> str:
    """Atomic units of USDC, which has six decimals."""
    return format_units(amount, 6)


def main() -> int:
    if len(sys.argv) not in (2, 3) or not os.environ.get("X402KIT_EVM_KEY"):
        print(f"usage: X402KIT_EVM_KEY=0x… {sys.argv[0]} URL [BUDGET]", file=sys.stderr)
        return 2
    base_url, budget = sys.argv[1].rstrip("/"), sys.argv[2] if len(sys.argv) > 2 else "$0.05"
    agent = Agent(base_url, os.environ["X402KIT_EVM_KEY"], budget)
    try:
        for text in agent.run():
            print(text)
        print("The work is done.")
    except TooDear as refusal:
        print(f"The budget is used up: {refusal}")
    except (PayerError, httpx.HTTPError) as fault:
        print(f"Stopped: {fault}")
        return 1
    finally:
        doubtful = len(agent.payer.payments(only_open=True)) + len(agent.payer.balance_calls(only_open=True))
        print(f"Calls of this run: ${dollars(agent.spent)}. Paid today: {agent.payer.spent_today()} of {budget}.")
        print(f"{doubtful} payment(s) or call(s) with an open outcome.")
        agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
