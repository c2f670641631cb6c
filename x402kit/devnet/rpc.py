"""JSON-RPC over one kept-open HTTP connection: enough for a local node, and quick to import."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from typing import Any

from .errors import ChainRefused, DevnetError

__all__ = ["JsonRpc"]

_TIMEOUT_SECONDS = 30.0


class JsonRpc:
    """A blocking caller; threads may share it."""

    def __init__(self, authority: str) -> None:
        self._connection = http.client.HTTPConnection(authority, timeout=_TIMEOUT_SECONDS)
        self._lock = threading.Lock()
        self._ids = itertools.count(1)

    def __call__(self, method: str, *params: Any) -> Any:
        """The call's result. Raises ChainRefused for an error answer, DevnetError when nobody answers."""
        body = json.dumps({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        with self._lock:
            try:
                self._connection.request("POST", "/", body, {"Content-Type": "application/json"})
                answer = json.loads(self._connection.getresponse().read())
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()  # the next call opens a new one
                raise DevnetError(f"{method}: the local node does not answer: {error!r}") from error
        if "error" in answer:
            refusal = answer["error"]
            raise ChainRefused(method, refusal["code"], refusal["message"], refusal.get("data"))
        return answer["result"]

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
