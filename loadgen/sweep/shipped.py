"""The sweeps that come with loadgen."""

from __future__ import annotations

from pathlib import Path

from loadgen.config import near
from loadgen.errors import ConfigError


def find_sweep(name: str) -> Path:
    """The file ``name``, or the shipped sweep of that name. Raises ConfigError naming the near one."""
    path = Path(name)
    if path.is_file():
        return path
    known = {file.stem: file for file in shipped_sweeps()}
    if path.stem in known and path.name in (path.stem, f"{path.stem}.yaml"):
        return known[path.stem]
    raise ConfigError(
        f"{name}: no such file, and no shipped sweep{near(path.stem, known)} (shipped: {', '.join(known)})"
    )


def shipped_sweeps() -> list[Path]:
    """The sweeps that come with loadgen, sorted by name."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "_scenarios", here.parent / "scenarios"):
        if folder.is_dir():
            return sorted((folder / "sweeps").glob("*.yaml"))
    return []
