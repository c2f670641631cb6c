"""Packs the examples into wheels, where `x402kit demo` serves one of them. In a clone it finds them by itself."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard" and self.target_name == "wheel":
            build_data["force_include"]["examples"] = "x402kit/examples"
