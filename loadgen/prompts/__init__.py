"""Prompt sources: where request bodies come from, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "synthetic": "loadgen.prompts.synthetic:SyntheticSource",
        "jsonl": "loadgen.prompts.jsonl:JsonlSource",
        "sharegpt": "loadgen.prompts.sharegpt:SharegptSource",
        "trace": "loadgen.prompts.trace:TraceSource",
    }
)
"""Source name -> "module:Class"; the class obeys `loadgen.types.PromptSource`."""
