"""The ledger as big integers and dictionaries, built on rules.py: what a store must do, and what it must say.

Each move is applied here when it is made up, and gives the call for the store, what the store must answer, and what it
must answer when it is asked the same again (E03).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from x402kit.errors import HoldEnded, InsufficientBalance, PaymentUsed, ProofUsed
from x402kit.ledger import rules
from x402kit.ledger.port import Store
from x402kit.model import Account, Claim, Entry, Hold, Spend

__all__ = ["Line", "Model", "Step", "same"]

NETWORK = "eip155:8453"
FAR = 4_000_000_000
_ENDS = {"captured": "capture", "voided": "void", "expired": "expire"}


class Line(NamedTuple):
    """An entry without what only a store knows: its number and the time."""

    account: Account
    key: str
    type: str
    amounts: rules.Postings
    balance: int
    resource: str = ""
    request_id: str = ""
    reference: str = ""

    @classmethod
    def of(cls, entry: Entry) -> Line:
        amounts = rules.Postings(entry.external, entry.available, entry.held, entry.revenue, entry.suspense)
        account = Account(entry.owner, entry.asset)
        told = (entry.resource, entry.request_id, entry.reference)
        return cls(account, entry.key, entry.type, amounts, entry.balance, *told)


@dataclass(frozen=True)
class Step:
    """One move: how the store is asked, what it answers, and what when it is asked again."""

    name: str
    call: Callable[[Store], Awaitable[Any]]
    expected: Any
    again: Any


@dataclass
class Model:
    """The whole ledger. ``rng`` decides what happens next."""

    rng: random.Random
    accounts: list[Account]
    available: dict[Account, int] = field(default_factory=lambda: defaultdict[Account, int](int))
    held: dict[Account, int] = field(default_factory=lambda: defaultdict[Account, int](int))
    log: dict[Account, list[Line]] = field(default_factory=lambda: defaultdict[Account, list[Line]](list))
    keys: dict[str, Line] = field(default_factory=dict[str, Line])
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    deferred: dict[str, int] = field(default_factory=dict[str, int])
    claims: dict[str, Claim] = field(default_factory=dict[str, Claim])
    payouts: dict[str, Claim] = field(default_factory=dict[str, Claim])
    proofs: list[tuple[Account, str]] = field(default_factory=list[tuple[Account, str]])
    count: int = 0

    def next(self, account: Account) -> Step:
        """Make something happen to an account, and to no other."""
        moves = (
            *(self.deposit,) * 3,
            *(self.reserve,) * 6,
            *(self.end,) * 6,
            *(self.defer,) * 1,
            *(self.pay,) * 4,
            *(self.payout,) * 2,
        )
        return self.rng.choice(moves)(account)

    # Money in.

    def deposit(self, account: Account) -> Step:
        old = [line for line in self.keys.values() if line.key.startswith("deposit:")]
        if old and self.rng.random() < 0.2:  # a key that was used: for the same, or for something else
            line = self.rng.choice(old)
            amount = line.amounts.available + self.rng.choice((0, 1))
            again = account == line.account and amount == line.amounts.available
            expected = line if again else PaymentUsed("deposit_key_used")
            key = line.key.partition(":")[2]
        else:
            amount = self._some()
            key = self._name("top-up")
            expected = self._post(account, f"deposit:{key}", "deposit", rules.deposit(amount))
        return Step("deposit", lambda s: s.deposit(account, amount, key), expected, expected)

    def pay(self, account: Account) -> Step:
        mine = [claim for claim in self.claims.values() if self._of(claim) == account]
        settled = [claim for claim in mine if claim.state == "settled"]
        done = [claim for claim in mine if claim.state in ("served", "credited") and claim.reason != "reversed"]
        if settled and self.rng.random() < 0.7:
            return self._finish(account, self.rng.choice(settled))
        if done and self.rng.random() < 0.3:
            return self._write_off(account, self.rng.choice(done))
        return self._settle(account)

    def _settle(self, account: Account) -> Step:
        wallet = account.owner.rpartition(":")[2]
        token = account.asset.rpartition("/")[2]
        claim = Claim(
            *(self._name("payment"), "settled", b"f", b"c", "GET /paid", NETWORK, token.upper().replace("X", "x")),
            *("0xshop", wallet.upper().replace("X", "x"), self._some(), FAR, 1, 2),
            owner="o",
            request_id=f"r{self.count}",
            reference=f"0x{self.count:x}",
        )
        self.claims[claim.payment_id] = claim

        async def settle(store: Store) -> bool:
            row = await store.claim(claim.changed(state="claimed", reference=""))
            assert row.owner == "o"
            return await store.move(claim.payment_id, "confirm", "o", reference=claim.reference)

        return Step("settle", settle, True, False)

    def _finish(self, account: Account, claim: Claim) -> Step:
        move = self.rng.choice(("serve", "serve", "credit", "serve_held", "reverse"))
        if move == "serve_held" and self._is_deferred(account):
            move = "credit"
        name = claim.payment_id
        if move == "reverse":
            self.claims[name] = claim.changed(state="failed")
            return Step(move, lambda s: s.move(name, "reverse", "o"), True, False)
        cost = 0 if move != "serve" else self.rng.randint(0, 2 * claim.amount)
        state = "credited" if move == "credit" else "served"
        self.claims[name] = claim.changed(state=state, captured=min(cost, claim.amount))
        told = (claim.resource, claim.request_id, claim.reference)
        kind = "deposit" if move == "credit" else "payment"
        self._post(account, f"claim:{name}", kind, rules.payment(claim.amount, cost), *told)
        if move != "serve_held":
            columns = {"captured": cost} if move == "serve" else {}
            return Step(move, lambda s: s.move(name, move, "o", **columns), True, False)
        hold = self._hold(account, claim.amount, f"job:{name}", holder="", deadline=self.count + 50)
        self._open(hold)
        self.deferred[hold.id] = hold.deadline
        return Step(move, lambda s: s.serve_held(name, "o", hold, served_at=5), True, False)

    def _write_off(self, account: Account, claim: Claim) -> Step:
        self.claims[claim.payment_id] = claim.changed(reason="reversed", final=1)
        told = (claim.resource, claim.request_id, claim.reference)
        amounts = rules.reverse(claim.amount, self.available[account])
        self._post(account, f"reverse:{claim.payment_id}", "reverse", amounts, *told)
        return Step("write_off", lambda s: s.write_off(claim.payment_id), None, None)

    # Holds.

    def reserve(self, account: Account) -> Step:
        hold = self._hold(account, self._amount_near(self.available[account]), self._name("hold"))
        spend = Spend(self._name("proof"), FAR) if self.rng.random() < 0.6 else None
        spent = [proof for owner, proof in self.proofs if owner == account]
        expected: Any
        if spend and spent and self.rng.random() < 0.15:
            spend = Spend(self.rng.choice(spent), FAR)
            expected = ProofUsed()
        elif hold.amount > self.available[account]:
            expected = InsufficientBalance(self.available[account], hold.amount)
        else:
            expected = self._open(hold)
            if spend:
                self.proofs.append((account, spend.proof_id))
        return Step("reserve", lambda s: s.reserve(hold, spend), expected, expected)

    def end(self, account: Account) -> Step:
        mine = [hold for hold in self.holds.values() if hold.account == account]
        opened = [hold for hold in mine if hold.state == "open"]
        if opened and self.rng.random() < 0.85:
            hold = self.rng.choice(opened)
        elif mine:
            hold = self.rng.choice(mine)
        else:
            return Step("void", lambda s: s.void("never made"), HoldEnded("no_such_hold"), HoldEnded("no_such_hold"))
        if hold.state == "open" and self.rng.random() < 0.1:
            gone = HoldEnded("no_such_hold")
            return Step("void", lambda s: s.void(hold.id, holder="another"), gone, gone)
        if self.rng.random() < 0.3:
            return self._void(hold)
        return self._capture(hold)

    def _void(self, hold: Hold) -> Step:
        if hold.state == "open":
            expected: Any = self._end(hold, "voided", rules.void(hold.amount))
        elif hold.state == "voided":
            expected = self.keys[f"end:{hold.id}"]
        else:
            expected = HoldEnded(f"already_{hold.state}")
        return Step("void", lambda s: s.void(hold.id, holder=hold.holder), expected, expected)

    def _capture(self, hold: Hold) -> Step:
        overage: Any = self.rng.choice(("clamp", "charge"))
        cost = self.rng.choice((0, 1, hold.amount, self.rng.randint(0, 3 * hold.amount)))
        if hold.state == "captured" and self.rng.random() < 0.5:
            cost = hold.captured + hold.lost
        if hold.state == "open":
            more = self.available[hold.account] if overage == "charge" else 0
            amounts = rules.capture(hold.amount, cost, more=min(more, max(cost - hold.amount, 0)))
            expected: Any = self._end(hold, "captured", amounts, cost)
        elif hold.state == "captured" and cost == hold.captured + hold.lost:
            expected = self.keys[f"end:{hold.id}"]
        else:
            expected = HoldEnded(f"already_{hold.state}")
        holder = self.rng.choice((None, hold.holder))
        return Step(
            "capture",
            lambda s: s.capture(hold.id, cost, holder=holder, overage=overage, status=200),
            expected,
            expected,
        )

    def defer(self, account: Account) -> Step:
        mine = [hold for hold in self.holds.values() if hold.account == account and hold.holder]
        if not mine or self._is_deferred(account):
            return self.reserve(account)
        hold = self.rng.choice(mine)
        deadline = self.count + self.rng.randint(0, 200)
        if hold.state == "open":
            self.deferred[hold.id] = deadline
            self.holds[hold.id] = hold._replace(deadline=deadline)
        done = hold.state == "open"
        return Step("defer", lambda s: s.defer_hold(hold.id, hold.holder, deadline), done, done)

    def _is_deferred(self, account: Account) -> bool:
        """Of one account one at a time: those that are over together expire in an order of the store's choice."""
        return any(self.holds[name].account == account for name in self.deferred)

    def expire(self) -> Step:
        """To all accounts, alone: the jobs' holds whose time is over."""
        now = self.count
        over = [name for name, deadline in self.deferred.items() if deadline <= now]
        ended = [self.holds[name] for name in over if self.holds[name].state == "open"]
        for hold in ended:
            self._end(hold, "expired", rules.void(hold.amount))
        expected = {hold.id for hold in ended}

        async def expire(store: Store) -> set[str]:
            return {hold.id for hold in await store.expire(now, limit=100_000)}

        return Step("expire", expire, expected, set[str]())

    # Money out.

    def payout(self, account: Account) -> Step:
        opened = [row for row in self.payouts.values() if self._of(row) == account and row.state != "settled"]
        if opened and self.rng.random() < 0.7:
            return self._move_payout(account, self.rng.choice(opened))
        amount = self._amount_near(self.available[account])
        wallet, token = account.owner.rpartition(":")[2], account.asset.rpartition("/")[2]
        row = Claim(
            *(self._name("payout"), "claimed", b"", b"", "", NETWORK, token, "", wallet, amount, FAR, 1, 2), owner="o"
        )
        spend = Spend(self._name("proof"), FAR) if self.rng.random() < 0.5 else None
        expected: Any = row
        if amount > self.available[account]:
            expected = InsufficientBalance(self.available[account], amount)
        else:
            self._post(account, f"payout:{row.payment_id}", "payout", rules.payout(amount))
            self.payouts[row.payment_id] = row
            if spend:
                self.proofs.append((account, spend.proof_id))
        return Step("payout", lambda s: s.payout(row, spend), expected, expected)

    def _move_payout(self, account: Account, row: Claim) -> Step:
        move = self.rng.choice(("intend", "confirm", "lose", "drop", "fail"))
        name = row.payment_id
        done = rules.may(move, row.state)
        end = rules.MOVES[move][1]
        if done:
            self.payouts[name] = row.changed(state=end)
            reference = "0xpaid" if move == "confirm" else row.reference
            if end == "settled":
                self._post(account, f"payout-end:{name}", "refund", rules.refund(row.amount), "", "", reference)
            elif end == "failed":
                self._post(account, f"payout-end:{name}", "returned", rules.returned(row.amount), "", "", reference)
        columns = {"reference": "0xpaid"} if move == "confirm" else {}
        return Step(
            f"payout {move}", lambda s: s.move_payout(name, move, "o", **columns), done, done and rules.may(move, end)
        )

    # The books.

    def _post(self, account: Account, key: str, kind: str, amounts: rules.Postings, *told: str) -> Line:
        assert sum(amounts) == 0
        assert key not in self.keys
        self.available[account] += amounts.available
        self.held[account] += amounts.held
        assert self.available[account] >= 0 <= self.held[account]
        line = Line(account, key, kind, amounts, self.available[account], *told)
        self.keys[key] = line
        self.log[account].append(line)
        return line

    def _open(self, hold: Hold) -> Hold:
        amounts = rules.reserve(hold.amount)
        self._post(hold.account, f"reserve:{hold.id}", "reserve", amounts, hold.resource, hold.request_id)
        self.holds[hold.id] = hold
        return hold

    def _end(self, hold: Hold, state: str, amounts: rules.Postings, cost: int = 0) -> Line:
        self.holds[hold.id] = hold._replace(
            state=state,
            captured=amounts.revenue,
            lost=cost - amounts.revenue,
            status=200 if state == "captured" else 0,
        )
        self.deferred.pop(hold.id, None)
        told = (hold.resource, hold.request_id)
        return self._post(hold.account, f"end:{hold.id}", _ENDS[state], amounts, *told)

    def _of(self, claim: Claim) -> Account:
        return Account.of(claim.network, claim.asset, claim.payer)

    def _hold(self, account: Account, amount: int, name: str, holder: str = "me", deadline: int = 1) -> Hold:
        told = f"r{self.count}"
        return Hold(name, *account, amount, holder, 1, deadline, resource="POST /call", request_id=told)

    def _name(self, what: str) -> str:
        self.count += 1
        return f"{what}-{self.count}"

    def _some(self) -> int:
        return self.rng.choice((1, 7, 1_000, self.rng.randint(1, 10**6), self.rng.randint(1, 2**55)))

    def _amount_near(self, available: int) -> int:
        return max(1, self.rng.choice((1, available, available + 1, available // 2, self.rng.randint(0, available))))


def same(found: Any, expected: Any) -> bool:
    """Whether a store's answer is what the model says."""
    if isinstance(expected, Line):
        return isinstance(found, Entry) and Line.of(found) == expected
    if isinstance(expected, Hold):
        return isinstance(found, Hold) and found._replace(lease_until=0, ended_at=0) == expected
    if isinstance(expected, Claim):
        fields = ("payment_id", "state", "owner", "amount", "payer")
        return all(getattr(found, name) == getattr(expected, name) for name in fields)
    if isinstance(expected, Exception):
        return type(found) is type(expected) and vars(found) == vars(expected)
    return bool(found == expected)
