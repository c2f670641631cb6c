"""A wallet service of Nostr Wallet Connect (NIP-47) behind a relay of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator

from nostr_sdk import (
    Client,
    ClientNotification,
    Event,
    EventBuilder,
    Filter,
    Keys,
    Kind,
    LocalRelay,
    LocalRelayBuilder,
    Nip44Version,
    NostrSdkError,
    NostrWalletConnectUri,
    RateLimit,
    ReqTarget,
    Tag,
    nip04_decrypt,
    nip04_encrypt,
    nip44_decrypt,
    nip44_encrypt,
)

from .node import Json, RealNode, Said

__all__ = ["NwcWallet", "nwc_wallet"]

_REQUEST, _RESPONSE, _INFO = 23194, 23195, 13194
_FOR_INVOICES = ("get_info", "make_invoice", "lookup_invoice", "list_transactions")
_METHODS = (*_FOR_INVOICES, "pay_invoice")


class _Error(Exception):
    def __init__(self, code: str) -> None:
        self.code = code


class NwcWallet:
    """``faults``: by method "hang" (no answer), "lost" (done, and no answer) or an error code of NIP-47.

    ``named``: whether it says which chain it is on; ``stated``: whether it gives a state, newer in NIP-47.
    """

    def __init__(self, node: RealNode) -> None:
        self.node = node
        self.uri = self.limited_uri = ""
        self.faults: dict[str, str] = {}
        self.named = self.stated = True
        self.spoken: set[str] = set()
        self._keys, self._app, self._limited = Keys.generate(), Keys.generate(), Keys.generate()
        self._client = Client()
        self._relay: LocalRelay | None = None

    async def start(self, *, encryption: str = "nip44_v2 nip04") -> None:
        """The relay, and the wallet at it."""
        # By default 60 events a minute: the node's payments of all the tests before are pages of answers by now.
        self._relay = LocalRelayBuilder().rate_limit(RateLimit(max_reqs=10_000, notes_per_minute=100_000)).build()
        await self._relay.run()
        url = await self._relay.url()
        for app, name in ((self._app, "uri"), (self._limited, "limited_uri")):
            setattr(self, name, str(NostrWalletConnectUri(self._keys.public_key(), [url], app.secret_key(), None)))
        await self._client.add_relay(url)
        await self._client.connect()
        info = EventBuilder(Kind(_INFO), " ".join(_METHODS))
        if encryption:
            info = info.tags([Tag.parse(["encryption", encryption])])
        await self._client.send_event(info.finalize(self._keys))
        await self._client.subscribe(ReqTarget.auto([Filter().kind(Kind(_REQUEST)).pubkey(self._keys.public_key())]))

    async def serve(self) -> None:
        """Answer, each request in a task of its own."""
        notices, seen = self._client.notifications(), set[str]()
        async with asyncio.TaskGroup() as tasks:
            while (notice := await notices.next()) is not None:
                if isinstance(notice, ClientNotification.NEW_EVENT) and notice.event.id().to_hex() not in seen:
                    seen.add(notice.event.id().to_hex())
                    tasks.create_task(self._answer(notice.event))

    def stop_relay(self) -> None:
        """The relay is gone."""
        if self._relay is not None:
            self._relay.shutdown()

    async def stop(self) -> None:
        self.stop_relay()
        await self._client.shutdown()

    async def _answer(self, event: Event) -> None:
        secret, author = self._keys.secret_key(), event.author()
        try:
            text, newer = nip44_decrypt(secret, author, event.content()), True
        except NostrSdkError:
            text, newer = nip04_decrypt(secret, author, event.content()), False
        self.spoken.add("nip44_v2" if newer else "nip04")
        asked = json.loads(text)
        method, fault = asked["method"], self.faults.get(asked["method"], "")
        if fault == "hang":
            return
        said: Json = {"result_type": method}
        try:
            if author.to_hex() not in (self._app.public_key().to_hex(), self._limited.public_key().to_hex()):
                raise _Error("UNAUTHORIZED")
            if author.to_hex() == self._limited.public_key().to_hex() and method not in _FOR_INVOICES:
                raise _Error("RESTRICTED")
            if fault and fault != "lost":
                raise _Error(fault)
            said["result"] = await getattr(self, f"_{method}")(asked["params"])
        except _Error as e:
            said["error"] = {"code": e.code, "message": "said by the wallet"}
        if fault == "lost":
            return
        body = json.dumps(said)
        sealed = nip44_encrypt(secret, author, body, Nip44Version.V2) if newer else nip04_encrypt(secret, author, body)
        tags = [Tag.parse(["p", author.to_hex()]), Tag.parse(["e", event.id().to_hex()])]
        await self._client.send_event(EventBuilder(Kind(_RESPONSE), sealed).tags(tags).finalize(self._keys))

    async def _get_info(self, params: Json) -> Json:
        chain = {"network": "regtest"} if self.named else {}
        return {"alias": "x402kit", **chain, "methods": list(_METHODS), "notifications": []}

    async def _make_invoice(self, params: Json) -> Json:
        row = await self.node.add(params["amount"], params.get("description", ""), params["expiry"])
        return {**self._incoming(row), "payment_hash": base64.b64decode(row["r_hash"]).hex()}

    async def _lookup_invoice(self, params: Json) -> Json:
        payment_hash = params["payment_hash"]
        if (sent := await self.node.payment(payment_hash)) is not None:
            return self._outgoing(sent)
        if (row := await self.node.invoice(payment_hash)) is not None:
            return self._incoming(row)
        raise _Error("NOT_FOUND")

    async def _list_transactions(self, params: Json) -> list[Json] | Json:
        assert (params["type"], params["unpaid"]) == ("incoming", False)
        rows = [self._incoming(row) for row in reversed(await self.node.settled())]
        rows = [row for row in rows if row["created_at"] >= params["from"]]
        start = params.get("offset") or 0
        return {"transactions": rows[start : start + params["limit"]]}

    async def _pay_invoice(self, params: Json) -> Json:
        try:
            sent = await self.node.send(params["invoice"], 10_000, 60)
        except Said:
            raise _Error("PAYMENT_FAILED") from None
        if sent["status"] == "FAILED":
            raise _Error("PAYMENT_FAILED")
        return {"preimage": sent["payment_preimage"], "fees_paid": int(sent["fee_msat"])}

    def _incoming(self, row: Json) -> Json:
        states = {"SETTLED": "settled", "CANCELED": "expired", "ACCEPTED": "accepted"}
        shown: Json = {
            "type": "incoming",
            "invoice": row["payment_request"],
            "description": row["memo"],
            "payment_hash": base64.b64decode(row["r_hash"]).hex(),
            "amount": int(row["value_msat"]),
            "fees_paid": 0,
            "created_at": int(row["creation_date"]),
            "expires_at": int(row["creation_date"]) + int(row["expiry"]),
        }
        if self.stated:
            waits = row["state"] == "OPEN" and any(part["state"] == "ACCEPTED" for part in row["htlcs"])
            shown["state"] = "accepted" if waits else states.get(row["state"], "pending")
        if row["state"] == "SETTLED":
            shown |= {"settled_at": int(row["settle_date"]), "preimage": base64.b64decode(row["r_preimage"]).hex()}
        return shown

    def _outgoing(self, row: Json) -> Json:
        states = {"SUCCEEDED": "settled", "FAILED": "failed"}
        shown: Json = {
            "type": "outgoing",
            "invoice": row["payment_request"],
            "payment_hash": row["payment_hash"],
            "amount": int(row["value_msat"]),
            "fees_paid": int(row["fee_msat"]),
            "created_at": int(row["creation_date"]),
        }
        if self.stated:
            shown["state"] = states.get(row["status"], "pending")
        if row["status"] == "SUCCEEDED":
            shown |= {"settled_at": int(row["creation_date"]), "preimage": row["payment_preimage"]}
        return shown


@contextlib.asynccontextmanager
async def nwc_wallet(node: RealNode, *, encryption: str = "nip44_v2 nip04") -> AsyncGenerator[NwcWallet]:
    """A wallet at work until the block ends."""
    wallet = NwcWallet(node)
    await wallet.start(encryption=encryption)
    serving = asyncio.create_task(wallet.serve())
    try:
        yield wallet
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await wallet.stop()
