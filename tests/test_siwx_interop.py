"""The sign-in extension of the x402 package understands us, and we it."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest

from tests.support.peers import ask
from tests.support.wallet_proofs import BASE, ORIGIN, SOLANA, URL, Wallet, evm_wallet, proofs, solana_wallet
from x402kit.model import Json
from x402kit.protocols.siwx import build_message, encode_proof


def peer(task: Json, key: bytes = bytes(32)) -> Json:
    return ask("sign_in.py", task, PEER_KEY=key.hex())


@pytest.mark.parametrize("chain", [BASE, SOLANA])
@pytest.mark.parametrize("options", [{}, {"resources": ["https://api.example.com/terms", "https://other.example/a"]}])
async def test_its_proof_of_our_challenge_is_good(chain: str, options: dict[str, Any]) -> None:
    here = proofs(time.time, **options)
    challenge = here.challenge(int(time.time()), URL + "?model=demo")
    made = peer({"sign": challenge, "chain": chain, "url": URL}, secrets.token_bytes(32))
    proven = await here.verify(made["header"].encode())
    address = made["address"] if chain == SOLANA else made["address"].lower()
    assert (proven.owner, proven.dialect) == (f"{chain}:{address}", "siwx")


@pytest.mark.parametrize("wallet", [evm_wallet(), solana_wallet()], ids=["evm", "solana"])
@pytest.mark.parametrize("left_out", [(), ("statement",), ("statement", "expirationTime")])
def test_our_proof_is_good_to_it(wallet: Wallet, left_out: tuple[str, ...]) -> None:
    info = proofs(time.time).challenge(int(time.time()), URL)["info"]
    info = {name: value for name, value in info.items() if name not in left_out}
    signature = wallet.sign(build_message(info, wallet.address, wallet.network))
    header = encode_proof(info, wallet.address, wallet.network, signature)
    assert peer({"verify": header, "origin": ORIGIN}) == {"payer": wallet.address}


def test_it_refuses_what_we_signed_for_another_text() -> None:
    """Its verdict is one that can be no."""
    wallet = evm_wallet()
    info = proofs(time.time).challenge(int(time.time()), URL)["info"]
    signature = wallet.sign(build_message({**info, "nonce": "0" * 32}, wallet.address, wallet.network))
    header = encode_proof(info, wallet.address, wallet.network, signature)
    assert peer({"verify": header, "origin": ORIGIN}) == {"reason": "invalid_siwx_signature"}
    assert peer({"verify": header, "origin": "https://evil.example"}) == {"reason": "invalid_siwx_domain_mismatch"}
