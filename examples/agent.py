"""An agent with a budget: it pays for each call, stops when the money is used up, and says what it spent.

    X402KIT_EVM_KEY=0x… python examples/agent.py http://127.0.0.1:8000 [budget, e.g. '$0.05']

It calls examples/inference.py. What it signs is written down in agent.db first: killed and started again, it knows
what it spent today, and a payment whose answer was lost is shown again instead of being made twice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from decimal import Decimal

import httpx

from x402kit.client import Limits, Payer, PayerError, Proposal, TooDear, payment_of

CITIES = ("Lisbon", "Rome", "Oslo", "Cairo", "Lima", "Quito")


class Agent:
    """Reads the weather of one city after another and has it put into words, as long as the budget lasts."""

    def __init__(self, base_url: str, key: str, budget: str, journal: str = "agent.db") -> None:
        self.payer = Payer(
            evm_key=key,
            limits=Limits(per_call="$0.02", per_day=budget),
            journal=journal,
            approve=self.approve,
            allow_insecure=base_url.startswith("http://127.0.0.1"),
        )
        self.client = httpx.Client(base_url=base_url, transport=self.payer.transport(), timeout=60)
        self.spent = Decimal(0)

    def approve(self, proposal: Proposal) -> bool:
        """Asked before each signature, when the limits allow it. This agent wants to pay one seller only."""
        return proposal.url.startswith(str(self.client.base_url))

    def weather(self, city: str) -> str:
        answer = self.client.get("/v1/weather", params={"city": city})
        self.account(answer)
        return f"{answer.json()['weather']} in {city}"

    def words(self, text: str) -> str:
        question = {"role": "user", "content": f"Put this into words: {text}"}
        answer = self.client.post(
            "/v1/chat/completions", json={"model": "demo", "messages": [question], "max_tokens": 40}
        )
        self.account(answer)
        return str(answer.json()["choices"][0]["message"]["content"])

    def account(self, answer: httpx.Response) -> None:
        """Every answer says what it cost, and where the money moved."""
        answer.raise_for_status()
        paid = payment_of(answer)
        if paid is not None:
            dollars = Decimal(paid.amount).scaleb(-6)  # USDC has six decimals
            self.spent += dollars
            print(f"  paid ${dollars} for {answer.request.method} {answer.request.url.path}, {paid.transaction}")

    def run(self) -> Iterator[str]:
        for city in CITIES:
            yield self.words(self.weather(city))

    def close(self) -> None:
        self.client.close()
        self.payer.close()


def main() -> int:
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
        open_payments = agent.payer.payments(only_open=True)
        print(f"Spent ${agent.spent} in this run, {agent.payer.spent_today()} today, of {budget} a day.")
        print(f"{len(open_payments)} payment(s) with an open outcome.")
        agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
