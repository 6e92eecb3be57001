"""What a result depends on besides the scenario: code, packages, host. No secrets, no host names."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

_PACKAGES = ("loadgen", "aiohttp", "numpy", "orjson", "pandas", "pydantic", "uvloop", "nvidia-ml-py")


def packages() -> dict[str, str]:
    """Version of each package that can move a figure."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """The machine that sends the load: architecture, cores, memory."""
    try:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        memory_bytes = None
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory_bytes,
    }


def git() -> dict[str, Any] | None:
    """Commit of the source tree loadgen runs from, or None when it is an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))} if commit else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def digest(scenario: dict[str, Any]) -> str:
    """Hex SHA-256 of a resolved scenario: equal scenarios, equal digest."""
    return hashlib.sha256(orjson.dumps(scenario, option=orjson.OPT_SORT_KEYS)).hexdigest()
