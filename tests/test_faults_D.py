"""Group D of docs/faults.md: what a Solana payer can try, and what a seller never signs."""

from __future__ import annotations

import secrets

import pytest
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.compute_budget import request_heap_frame, set_compute_unit_limit, set_compute_unit_price
from solders.instruction import AccountMeta, CompiledInstruction, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import (
    AdvanceNonceAccountParams,
    CreateAccountParams,
    TransferParams,
    advance_nonce_account,
    create_account,
)
from solders.system_program import transfer as system_transfer
from solders.transaction import VersionedTransaction

from tests.support.svm_offline import Desk
from tests.support.svm_payments import (
    LIGHTHOUSE,
    MEMO,
    MINT,
    PAY_TO,
    TOKEN,
    TOKEN_2022,
    co_signed,
    compute,
    creation,
    encoded,
    memo,
    owned_by,
    standard,
    svm_seller,
    transfer,
)
from x402kit.devnet import SvmDevnet
from x402kit.errors import ConfigError, PaymentUsed
from x402kit.networks.svm_assets import check_extensions

FUNDS = "fee_payer_transferring_funds"
OPTIONAL = "unknown_optional_instruction"


def raw_step(program: Pubkey, data: bytes, *accounts: Pubkey, signs: bool = False) -> Instruction:
    """``signs``: the last of the accounts does."""
    last = len(accounts) - 1
    metas = [AccountMeta(key, is_signer=signs and at == last, is_writable=True) for at, key in enumerate(accounts)]
    return Instruction(program, data, metas)


def test_D01_no_instruction_spends_the_fee_payer() -> None:
    desk = Desk()
    ours, payer = desk.fee_payer.pubkey(), desk.payer.pubkey()
    assert desk.refusal(desk.build()) == ""
    theft = system_transfer(TransferParams(from_pubkey=ours, to_pubkey=payer, lamports=10**9))
    made = create_account(CreateAccountParams(from_pubkey=ours, to_pubkey=payer, lamports=10**9, space=0, owner=payer))
    approve = raw_step(TOKEN, b"\x04" + bytes(8), owned_by(ours), payer, ours, signs=True)
    close = raw_step(TOKEN, b"\x09", owned_by(ours), payer, ours, signs=True)
    for bad in (theft, made):
        assert desk.of(*standard(payer), bad) == OPTIONAL
        assert desk.of(*compute(), bad, transfer(payer), memo()) == "no_transfer_instruction"
        assert desk.of(bad, *standard(payer)) == "instructions_compute_limit_instruction"
    for bad in (approve, close):
        assert desk.of(*standard(payer), bad) == OPTIONAL
    # Where even an allowed program is handed our signature, or a program is our own address.
    for program in (LIGHTHOUSE, MEMO):
        assert desk.of(*standard(payer)[:3], raw_step(program, b"x", ours)) == FUNDS
    assert desk.of(*standard(payer)[:3], raw_step(ours, b"x")) == OPTIONAL


def test_D01_the_relaxed_layout_lets_in_no_more() -> None:
    desk = Desk(changes={"relaxed": True, "creates": True})
    ours, payer = desk.fee_payer.pubkey(), desk.payer.pubkey()
    assert desk.of(transfer(payer)) == ""
    assert desk.of(creation(ours), transfer(payer)) == ""
    theft = system_transfer(TransferParams(from_pubkey=ours, to_pubkey=payer, lamports=10**9))
    for steps in ((theft, transfer(payer)), (transfer(payer), theft), (creation(ours), theft, transfer(payer))):
        assert desk.of(*steps) in ("no_transfer_instruction", OPTIONAL, "invalid_exact_svm_payload_" + OPTIONAL)
    # The seller chooses the layout: the very same is refused by one that is strict.
    assert Desk().of(transfer(payer)) == "instructions_length"


@pytest.mark.parametrize("relaxed", [False, True])
def test_D02_compute_budget_tricks(relaxed: bool) -> None:
    desk = Desk(changes={"relaxed": relaxed})
    payer = desk.payer.pubkey()
    rest = [transfer(payer), memo()]
    limit, price = compute()
    kind = "instructions_compute_"
    assert desk.of(limit, price, price, *rest) == "no_transfer_instruction"
    assert desk.of(limit, price, *rest, set_compute_unit_price(1_000_000)) == OPTIONAL
    assert desk.of(price, limit, *rest) == kind + "limit_instruction"
    assert desk.of(price, *rest) == kind + "limit_instruction"  # 1 400 000 units by default
    assert desk.of(limit, *rest) == kind + "price_instruction"
    assert desk.of(request_heap_frame(32 * 1024), price, *rest) == kind + "limit_instruction"
    assert desk.of(set_compute_unit_limit(200_001), price, *rest) == kind + "limit_instruction_too_high"
    assert desk.of(set_compute_unit_limit(200_000), price, *rest) == ""
    assert desk.of(limit, set_compute_unit_price(5_000_001), *rest) == kind + "price_instruction_too_high"
    assert desk.of(set_compute_unit_limit(10_000), set_compute_unit_price(5_000_000), *rest) == ""
    assert desk.of(set_compute_unit_limit(10_001), set_compute_unit_price(5_000_000), *rest).endswith("_too_high")


def test_D03_account_creation_only_where_the_price_holds_the_rent() -> None:
    quoted = Desk(changes={"relaxed": True, "creates": True})
    ours, payer = quoted.fee_payer.pubkey(), quoted.payer.pubkey()
    good, pay = creation(ours), transfer(payer)
    fault = "create_ata_instruction"
    assert quoted.of(good, pay) == quoted.of(*compute(), good, pay, memo()) == ""
    for desk in (Desk(changes={"relaxed": True}), Desk(changes={"creates": True}), Desk()):
        assert desk.of(*compute(), good, pay) == fault
    assert quoted.of(creation(payer), pay) == fault  # paid by another: then it is none of ours
    assert quoted.of(creation(ours, str(payer)), pay) == fault + "_incorrect_payee"
    other = Keypair().pubkey()
    assert quoted.of(creation(ours, mint=other), pay) == fault + "_incorrect_asset"
    assert quoted.of(creation(ours, program=TOKEN_2022), pay) == fault + "_incorrect_asset"
    assert quoted.of(good, good, pay) == "no_transfer_instruction"
    assert quoted.of(pay, good) == OPTIONAL
    for data in (b"", b"\x00", b"\x01\x00", b"\x02"):  # the other instructions of that program
        assert quoted.of(Instruction(good.program_id, data, good.accounts), pay) == fault
    for at in (0, 1, 4):
        metas = list(good.accounts)
        metas[at] = AccountMeta(other, is_signer=False, is_writable=True)
        assert quoted.of(Instruction(good.program_id, b"\x01", metas), pay) == fault


def test_D04_lookup_tables_are_refused() -> None:
    desk = Desk()
    payer = desk.payer.pubkey()
    steps = standard(payer)
    looked_up = [MINT, owned_by(Pubkey.from_string(PAY_TO)), TOKEN]
    table = AddressLookupTableAccount(Keypair().pubkey(), looked_up)
    message = MessageV0.try_compile(desk.fee_payer.pubkey(), steps, [table], desk.blockhash)
    assert message.address_table_lookups
    reason = desk.refusal(co_signed(message, [desk.payer]))
    assert reason == "invalid_exact_svm_smart_wallet_alt_resolution_not_available"


def test_D04_legacy_is_read_and_indices_that_lead_nowhere_are_malformed() -> None:
    desk = Desk()
    legacy = Message.new_with_blockhash(standard(desk.payer.pubkey()), desk.fee_payer.pubkey(), desk.blockhash)
    assert desk.refusal(co_signed(legacy, [desk.payer])) == ""
    raw = bytes(desk.build())
    undecodable = "could_not_be_decoded"
    for version in (1, 2, 127):
        at = 1 + 2 * 64
        assert raw[at] == 0x80
        assert desk.refusal(raw[:at] + bytes((0x80 | version,)) + raw[at + 1 :]) == undecodable
    assert desk.refusal(raw + b"\0") == undecodable
    assert desk.refusal(raw[:-1]) == undecodable
    assert desk.refusal(b"") == undecodable
    assert desk.refusal(b"\xff" * 1233) == undecodable
    message = desk.build().message
    steps = [CompiledInstruction(200, one.data, bytes(one.accounts)) for one in message.instructions]
    lost = MessageV0(message.header, message.account_keys, message.recent_blockhash, steps, [])
    assert desk.refusal(co_signed(lost, [desk.payer])) == undecodable
    steps = [CompiledInstruction(one.program_id_index, one.data, b"\xc8") for one in message.instructions]
    lost = MessageV0(message.header, message.account_keys, message.recent_blockhash, steps, [])
    assert desk.refusal(co_signed(lost, [desk.payer])) == undecodable


def test_D05_the_mint_and_its_own_program_are_ours_to_say() -> None:
    desk = Desk()
    payer, other = desk.payer.pubkey(), Keypair().pubkey()

    def with_transfer(**changes: object) -> str:
        made = transfer(payer, **changes)  # type: ignore[arg-type]  # one of its keywords
        return desk.of(*compute(), made, memo())

    assert with_transfer(mint=other) == "mint_mismatch"
    assert with_transfer(program=TOKEN_2022) == "mint_mismatch"
    assert with_transfer(decimals=7) == "mint_mismatch"
    assert with_transfer(destination=owned_by(other)) == "recipient_mismatch"
    assert with_transfer(destination=Pubkey.from_string(PAY_TO)) == "recipient_mismatch"
    assert with_transfer(amount=9_999) == with_transfer(amount=10_001) == with_transfer(amount=2**64 - 1)
    assert with_transfer(amount=9_999) == "amount_mismatch"


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value


def fee(now: int, later: int) -> bytes:
    """A transfer fee's configuration: two authorities, withheld, then epoch, maximum and basis points, twice."""
    old, new = (bytes(16) + points.to_bytes(2, "little") for points in (now, later))
    return extension(1, bytes(72) + old + new)


@pytest.mark.parametrize(
    ("extensions", "fault"),
    [
        (fee(0, 0), ""),
        (fee(1, 0), "a transfer fee"),
        (fee(0, 1), "a transfer fee"),
        (extension(14, bytes(64)), ""),
        (extension(14, bytes(32) + b"\x01" * 32), "a transfer hook"),
        (extension(9, b""), "no transfers"),
        (extension(12, b"\x01" * 32), ""),  # a permanent delegate: the list of mints is what guards against it
        (extension(12, b"\x01" * 32) + fee(5, 5), "a transfer fee"),
        (extension(14, bytes(63)), "a transfer hook"),
        (b"\x01\x00\xff\xff", "cut short"),
        (bytes(8) + fee(5, 5), ""),  # what is not initialized ends the list
    ],
)
def test_D05_no_mint_with_a_fee_or_a_hook(extensions: bytes, fault: str) -> None:
    data = bytes(165) + b"\x01" + extensions
    if fault:
        with pytest.raises(ConfigError, match=fault):
            check_extensions(data)
    else:
        check_extensions(data)


def test_D05_another_kind_of_account_is_no_mint() -> None:
    with pytest.raises(ConfigError, match="no mint"):
        check_extensions(bytes(165) + b"\x02")


def test_D06_the_authority_is_never_our_own_signer() -> None:
    desk = Desk()
    ours, payer = desk.fee_payer.pubkey(), desk.payer.pubkey()
    assert desk.of(*compute(), transfer(ours), memo()) == "signature_invalid"  # nobody else has signed it
    nudge = Instruction(standard(payer)[3].program_id, b"x", [AccountMeta(payer, is_signer=True, is_writable=False)])
    assert desk.of(*compute(), transfer(ours), nudge) == FUNDS
    # Nor is our token account what is drawn from, whoever may have been approved for it.
    assert desk.of(*compute(), transfer(payer, source=owned_by(ours)), memo()) == FUNDS
    # A seller who pays itself has sold nothing.
    mine = Desk(pay_to=str(payer))
    assert mine.of(*compute(), transfer(payer, pay_to=str(payer)), memo()) == FUNDS


def test_D06_nobody_else_signs_and_the_payer_does() -> None:
    desk = Desk()
    payer, other = desk.payer.pubkey(), Keypair()
    witness = Instruction(LIGHTHOUSE, b"x", [AccountMeta(other.pubkey(), is_signer=True, is_writable=False)])
    assert desk.refusal(desk.build([*standard(payer), witness], other)) == (
        "invalid_exact_svm_payload_excessive_signers".removeprefix("invalid_exact_svm_payload_")
    )
    good = desk.build()
    for forged in (Signature.default(), Keypair().sign_message(b"x"), other.sign_message(bytes(good.message))):
        assert desk.refusal(VersionedTransaction.populate(good.message, [Signature.default(), forged])) == (
            "signature_invalid"
        )
    assert desk.refusal(good, payer=str(payer)) == ""
    assert desk.refusal(good, payer=str(other.pubkey())) == "payer_mismatch"
    # Another's fee payer in front: nothing of ours, even if the rest is right.
    assert Desk(fee_payer=other).refusal(good) == "invalid_exact_svm_fee_payer_mismatch"


def test_D07_the_key_is_the_message_whatever_its_signatures() -> None:
    desk = Desk()
    good = desk.build()
    names = {desk.parse(encoded(good)).payment_id}
    for slot in (0, 1):
        signatures = list(good.signatures)
        signatures[slot] = Signature.from_bytes(secrets.token_bytes(64))
        mutated = VersionedTransaction.populate(good.message, signatures)
        names.add(desk.parse(encoded(mutated)).payment_id)
    assert len(names) == 1
    assert desk.refusal(VersionedTransaction.populate(good.message, list(good.signatures))) == ""
    changed = Desk(blockhash=type(desk.blockhash).new_unique())
    assert desk.parse(changed.payload()).payment_id not in names


def test_C07_a_durable_nonce_has_no_place() -> None:
    nonce = Keypair().pubkey()
    for desk in (Desk(), Desk(changes={"relaxed": True, "creates": True})):
        payer = desk.payer.pubkey()
        advance = advance_nonce_account(AdvanceNonceAccountParams(nonce_pubkey=nonce, authorized_pubkey=payer))
        assert desk.of(advance, *standard(payer)) in (
            "instructions_compute_limit_instruction",
            "no_transfer_instruction",
        )
        assert desk.of(advance, transfer(payer), memo()) != ""


async def test_D08_one_message_settles_once_and_the_next_showing_is_used(svm: SvmDevnet) -> None:
    async with svm_seller(svm) as shop:
        authorization = shop.authorize()
        claim, outcome = await shop.settle(authorization)
        assert outcome.state == "settled"
        # The node takes the same bytes again without a word: only the claim, taken before, says whose success it is.
        intent, _ = await shop.prepare(authorization)
        assert intent.reference == claim.reference
        assert (await shop.rail.send(intent)).state == "pending"
        with pytest.raises(PaymentUsed) as refused:
            await shop.rail.verify(authorization, shop.offer)
        assert refused.value.reference == claim.reference
        assert shop.received() == shop.offer.amount
