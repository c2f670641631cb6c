"""The x402 package's sign-in extension: reads one JSON task from standard input, prints one JSON line.

`{"sign": CHALLENGE, "chain": CAIP-2, "url": URL}` builds and signs a proof with PEER_KEY (hexadecimal; for Solana the
ed25519 seed) and prints `{"header": …, "address": …}`. `{"verify": HEADER, "origin": ORIGIN}` prints
`{"payer": …}`, or `{"reason": …}` with the package's own reason.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from common import emit, private_key
from eth_account import Account
from nacl.signing import SigningKey
from x402.extensions.sign_in_with_x.client import create_siwx_payload
from x402.extensions.sign_in_with_x.encode import encode_siwx_header
from x402.extensions.sign_in_with_x.parse import parse_siwx_header
from x402.extensions.sign_in_with_x.solana import encode_base58
from x402.extensions.sign_in_with_x.types import SIWxExtension
from x402.extensions.sign_in_with_x.validate import validate_siwx_message
from x402.extensions.sign_in_with_x.verify import verify_siwx_signature


class SolanaSigner:
    """What the package asks of a Solana wallet."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.address = encode_base58(bytes(self._key.verify_key))

    def sign_message(self, message: bytes) -> bytes:
        return bytes(self._key.sign(message).signature)


async def sign(task: dict[str, Any]) -> dict[str, Any]:
    challenge = SIWxExtension.model_validate(task["sign"])
    chain = next(each for each in challenge.supported_chains if each.chain_id == task["chain"])
    info = {**challenge.info.model_dump(by_alias=True), **chain.model_dump(by_alias=True)}
    key = private_key()
    signer: Any = SolanaSigner(bytes.fromhex(key)) if chain.type == "ed25519" else Account.from_key(key)
    payload = await create_siwx_payload(info, signer, task["url"])
    return {"header": encode_siwx_header(payload), "address": payload.address}


async def verify(task: dict[str, Any]) -> dict[str, Any]:
    payload = parse_siwx_header(task["verify"])
    checked = await validate_siwx_message(payload, task["origin"])
    if not checked.is_valid:
        return {"reason": checked.invalid_reason}
    result = await verify_siwx_signature(payload)
    return {"payer": result.payer} if result.is_valid else {"reason": result.invalid_reason}


task: dict[str, Any] = json.load(sys.stdin)
emit(asyncio.run(sign(task) if "sign" in task else verify(task)))
