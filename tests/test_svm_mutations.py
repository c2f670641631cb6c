"""Valid transactions, mutated: whatever would still be signed moves the very same money, and nothing else.

The judge is independent of the checks: the real VM runs what was let through, co-signed, and every balance is counted.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solders.account import Account
from solders.hash import Hash
from solders.instruction import CompiledInstruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import MessageHeader, MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.token.state import Mint, TokenAccount, TokenAccountState
from solders.transaction import VersionedTransaction

from tests.support.svm_offline import Desk
from tests.support.svm_payments import MEMO, MINT, PAY_TO, PRICE, TOKEN, compute, creation, memo, owned_by, transfer
from x402kit.errors import MalformedPayment, PaymentRefused
from x402kit.model import Json
from x402kit.networks import svm

SYSTEM = Pubkey.default()
FUNDS = 5_000_000
SOL = 10**9
FEES_MAX = 10_000 + 50_000
RENT = 2_039_280


@dataclass
class World:
    """A chain in process: fee payer with SOL and tokens of its own, a payer with both, a stranger."""

    vm: LiteSVM
    desk: Desk
    stranger: Keypair

    @property
    def owners(self) -> list[Pubkey]:
        return [self.desk.fee_payer.pubkey(), self.desk.payer.pubkey(), self.stranger.pubkey()]

    def tokens(self, owner: Pubkey) -> int:
        found = self.vm.get_account(owned_by(owner))
        return 0 if found is None else int.from_bytes(bytes(found.data)[64:72], "little")

    def lamports(self, key: Pubkey) -> int:
        return self.vm.get_balance(key) or 0


def make_world(desk: Desk, *, account: bool) -> World:
    vm = LiteSVM()
    world = World(vm, desk, Keypair.from_seed(b"a stranger of these tests ......"))
    authority = Pubkey.from_bytes(b"\x42" * 32)
    vm.set_account(MINT, Account(SOL, bytes(Mint(authority, 10**15, 6, True, None)), TOKEN, False, 0))
    held = [*world.owners, *([Pubkey.from_string(PAY_TO)] if account else [])]
    for owner in held:
        amount = 0 if str(owner) == PAY_TO else FUNDS
        data = TokenAccount(
            mint=MINT,
            owner=owner,
            amount=amount,
            delegate=None,
            state=TokenAccountState.Initialized,
            is_native=None,
            delegated_amount=0,
            close_authority=None,
        )
        vm.set_account(owned_by(owner), Account(RENT, bytes(data), TOKEN, False, 0))
    for owner in world.owners:
        vm.airdrop(owner, SOL)
    desk.blockhash = vm.latest_blockhash()
    return world


def steps_of(desk: Desk) -> list[Any]:
    """The fullest shape that the desk's layout has."""
    payer = desk.payer.pubkey()
    start = [creation(desk.fee_payer.pubkey())] if desk.terms.creates else []
    return [*compute(60_000), *start, transfer(payer), memo("a memo of these tests")]


# The mutations: each takes a message apart and puts it together otherwise.

Parts = tuple[list[int], list[Pubkey], list[CompiledInstruction]]


def _swap_instructions(parts: Parts, a: int, b: int) -> None:
    steps = parts[2]
    a, b = a % len(steps), b % len(steps)
    steps[a], steps[b] = steps[b], steps[a]


def _drop_instruction(parts: Parts, a: int, b: int) -> None:
    del parts[2][a % len(parts[2])]


def _double_instruction(parts: Parts, a: int, b: int) -> None:
    parts[2].insert(b % (len(parts[2]) + 1), parts[2][a % len(parts[2])])


def _swap_keys(parts: Parts, a: int, b: int) -> None:
    keys = parts[1]
    a, b = a % len(keys), b % len(keys)
    keys[a], keys[b] = keys[b], keys[a]


def _replace_key(parts: Parts, a: int, b: int) -> None:
    payer = Desk().payer.pubkey()
    others = [
        owned_by(payer),
        owned_by(Desk().fee_payer.pubkey()),
        SYSTEM,
        TOKEN,
        MEMO,
        payer,
        Pubkey.from_string(PAY_TO),
    ]
    parts[1][a % len(parts[1])] = others[b % len(others)]


def _append_key(parts: Parts, a: int, b: int) -> None:
    parts[1].append([SYSTEM, TOKEN, parts[1][0]][a % 3])


def _redirect_account(parts: Parts, a: int, b: int) -> None:
    at = a % len(parts[2])
    one = parts[2][at]
    accounts = bytearray(one.accounts)
    if not accounts:
        accounts.append(0)
    accounts[b % len(accounts)] = (a * 7 + b) % len(parts[1])
    parts[2][at] = CompiledInstruction(one.program_id_index, one.data, bytes(accounts))


def _add_account(parts: Parts, a: int, b: int) -> None:
    at = a % len(parts[2])
    one = parts[2][at]
    parts[2][at] = CompiledInstruction(
        one.program_id_index, one.data, bytes(one.accounts) + bytes((b % len(parts[1]),))
    )


def _redirect_program(parts: Parts, a: int, b: int) -> None:
    at = a % len(parts[2])
    one = parts[2][at]
    parts[2][at] = CompiledInstruction(b % len(parts[1]), one.data, bytes(one.accounts))


def _change_data(parts: Parts, a: int, b: int) -> None:
    at = a % len(parts[2])
    one = parts[2][at]
    data = bytearray(one.data) or bytearray(1)
    data[b % len(data)] ^= 1 << (a % 8)
    parts[2][at] = CompiledInstruction(one.program_id_index, bytes(data), bytes(one.accounts))


def _add_theft(parts: Parts, a: int, b: int) -> None:
    """A system transfer, an approval, a closing, or a plain transfer, with whatever accounts there are."""
    keys, steps = parts[1], parts[2]
    data = [
        (2).to_bytes(4, "little") + (10**6).to_bytes(8, "little"),
        b"\x04" + (10**6).to_bytes(8, "little"),
        b"\x09",
        b"\x03" + (10**6).to_bytes(8, "little"),
    ][b % 4]
    program = SYSTEM if b % 4 == 0 else TOKEN
    if program not in keys:
        keys.append(program)
    accounts = bytes((0, 1, 2)) if a % 2 else bytes((0, a % len(keys)))
    steps.insert(a % (len(steps) + 1), CompiledInstruction(keys.index(program), data, accounts))


def _change_header(parts: Parts, a: int, b: int) -> None:
    parts[0][a % 3] = b % 5


MUTATIONS: list[Callable[[Parts, int, int], None]] = [
    _swap_instructions,
    _drop_instruction,
    _double_instruction,
    _swap_keys,
    _replace_key,
    _append_key,
    _redirect_account,
    _add_account,
    _redirect_program,
    _change_data,
    _add_theft,
    _change_header,
]


def rebuilt(desk: Desk, world: World, mutations: list[tuple[int, int, int]]) -> bytes | None:
    """A good transaction after the mutations, signed by everybody but the fee payer; None where it is no message."""
    message = desk.build(steps_of(desk)).message
    assert isinstance(message, MessageV0)
    head = message.header
    counts = [head.num_required_signatures, head.num_readonly_signed_accounts, head.num_readonly_unsigned_accounts]
    parts: Parts = (counts, list(message.account_keys), list(message.instructions))
    for kind, a, b in mutations:
        if parts[2]:
            MUTATIONS[kind](parts, a, b)
    made = MessageV0(MessageHeader(*parts[0]), parts[1], message.recent_blockhash, parts[2], [])
    data = to_bytes_versioned(made)
    signers = {each.pubkey(): each for each in (desk.payer, world.stranger)}
    keys = made.account_keys[: parts[0][0]]
    signatures = [signers[key].sign_message(data) if key in signers else Signature.default() for key in keys]
    raw = bytes((len(signatures),)) + b"".join(map(bytes, signatures)) + data
    return raw if signatures else None


def is_signed(desk: Desk, raw: bytes) -> bool:
    """Whether the seller would sign it; whatever it is, there is one of two errors or none."""
    try:
        authorization = desk.parse({"transaction": base64.b64encode(raw).decode()})
        svm.check(authorization, desk.offer, desk.terms)
    except (PaymentRefused, MalformedPayment):
        return False
    return True


def moves_only_the_price(world: World, raw: bytes) -> None:
    """Run it with our signature, and count."""
    desk = world.desk
    message = VersionedTransaction.from_bytes(raw).message
    ours = desk.fee_payer.sign_message(to_bytes_versioned(message))
    transaction = VersionedTransaction.from_bytes(raw[:1] + bytes(ours) + raw[65:])
    seller = Pubkey.from_string(PAY_TO)
    missing = world.vm.get_account(owned_by(seller)) is None
    tokens = [world.tokens(owner) for owner in (*world.owners, seller)]
    lamports = world.lamports(desk.fee_payer.pubkey())
    others = [world.lamports(owner) for owner in world.owners[1:]]
    world.vm.send_transaction(transaction)
    after = [world.tokens(owner) for owner in (*world.owners, seller)]
    gained = after[3] - tokens[3]
    assert gained in (0, PRICE)
    assert [now - before for now, before in zip(after, tokens, strict=True)] == [0, -gained, 0, gained]
    rent = RENT if missing and world.vm.get_account(owned_by(seller)) is not None else 0
    assert lamports - world.lamports(desk.fee_payer.pubkey()) <= FEES_MAX + rent
    assert [world.lamports(owner) for owner in world.owners[1:]] == others


_INDEX = st.integers(0, 63)
_MUTATION = st.tuples(st.integers(0, len(MUTATIONS) - 1), _INDEX, _INDEX)
_SETTINGS = settings(
    max_examples=400,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_DESKS: dict[str, Json] = {
    "strict": {},
    "relaxed": {"relaxed": True},
    "creating": {"relaxed": True, "creates": True},
    "charged": {"any_order": True, "memo": "a memo of these tests"},
}


@pytest.fixture(params=_DESKS)
def world(request: pytest.FixtureRequest) -> World:
    return make_world(Desk(changes=_DESKS[request.param]), account=request.param != "creating")


def test_the_unmutated_is_signed_and_moves_the_price(world: World) -> None:
    raw = rebuilt(world.desk, world, [])
    assert raw is not None
    assert is_signed(world.desk, raw)
    moves_only_the_price(world, raw)
    assert world.tokens(Pubkey.from_string(PAY_TO)) == PRICE


@_SETTINGS
@given(mutations=st.lists(_MUTATION, min_size=1, max_size=4))
def test_D01_no_mutated_transaction_that_is_signed_moves_anything_else(
    world: World, mutations: list[tuple[int, int, int]]
) -> None:
    raw = rebuilt(world.desk, world, mutations)
    if raw is not None and is_signed(world.desk, raw):
        world.vm.expire_blockhash()
        world.desk.blockhash = world.vm.latest_blockhash()
        again = rebuilt(world.desk, world, mutations)  # under a new blockhash, so that no two are the same
        assert again is not None
        moves_only_the_price(world, again)


@_SETTINGS
@given(flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=3))
def test_A12_flipped_bytes_are_refused_by_one_of_two_errors(world: World, flips: list[tuple[int, int]]) -> None:
    good = rebuilt(world.desk, world, [])
    assert good is not None
    raw = bytearray(good)
    for at, mask in flips:
        raw[at % len(raw)] ^= mask
    if is_signed(world.desk, bytes(raw)):  # only our own, empty, slot is nobody's business
        assert raw[65:] == good[65:]
        assert raw[:1] == good[:1]


@_SETTINGS
@given(raw=st.binary(max_size=1300))
def test_A12_any_bytes_are_read_or_malformed(raw: bytes) -> None:
    assert not is_signed(Desk(), raw)
    assert not is_signed(Desk(), b"\x02" + bytes(128) + b"\x80" + raw)


def test_a_blockhash_is_all_that_tells_two_equal_payments_apart() -> None:
    one, two = (Desk(blockhash=Hash.new_unique()) for _ in range(2))
    steps = [*compute(), transfer(one.payer.pubkey()), memo("same")]
    names = {desk.parse({"transaction": _b64(desk, steps)}).payment_id for desk in (one, one, two)}
    assert len(names) == 2


def _b64(desk: Desk, steps: list[Any]) -> str:
    return base64.b64encode(bytes(desk.build(steps))).decode()
