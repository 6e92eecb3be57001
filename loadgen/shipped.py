"""The files that come with loadgen: scenarios, sweeps of them, capacity plans."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from loadgen.config import near
from loadgen.errors import ConfigError

Kind = Literal["scenario", "sweep", "plan"]
_FOLDERS: dict[Kind, str] = {"scenario": "", "sweep": "sweeps", "plan": "capacity"}


def shipped(kind: Kind) -> list[Path]:
    """The files of a kind that come with loadgen, sorted by name."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_scenarios", here.parent / "scenarios"):
        if folder.is_dir():
            return sorted((folder / _FOLDERS[kind]).glob("*.yaml"))
    return []


def find(name: str | Path, kind: Kind) -> Path:
    """The file ``name``, or the shipped one of that name. Raises ConfigError naming the near one."""
    path = Path(name)
    if path.is_file():
        return path
    known = {file.stem: file for file in shipped(kind)}
    if path.name.removesuffix(".yaml") in known:
        return known[path.name.removesuffix(".yaml")]
    raise ConfigError(
        f"{name}: no such file, and no shipped {kind}{near(path.stem, known)} (shipped: {', '.join(known)})"
    )
