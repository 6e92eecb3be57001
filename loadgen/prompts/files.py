"""What file sources share: opening plain or gzipped text, ordering and repeating requests."""

from __future__ import annotations

import codecs
import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.errors import ConfigError
from loadgen.types import Request


def read_data(path: Path) -> tuple[bytes, bool]:
    """A file's bytes, and whether a gzip stream was cut off (then what could be unpacked).

    Raises ConfigError naming the file.
    """
    try:
        data = path.read_bytes()
        cut = False
        if data[:2] == b"\x1f\x8b":
            try:
                data = gzip.decompress(data)
            except EOFError:
                data, cut = zlib.decompressobj(wbits=47).decompress(data), True
        return data.removeprefix(codecs.BOM_UTF8), cut
    except (OSError, zlib.error) as exc:
        raise ConfigError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def read_text(path: Path) -> tuple[str, bool]:
    """The same as text. Raises ConfigError when it is not UTF-8."""
    data, cut = read_data(path)
    try:
        return data.decode("utf-8", "ignore" if cut else "strict"), cut
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: expected UTF-8 text: byte {exc.start} is not") from exc


def numbered(
    bodies: Sequence[Mapping[str, Any]], rng: np.random.Generator, *, shuffle: bool, repeat: bool
) -> Iterator[Request]:
    """The bodies as requests 0, 1, ...: in file order or shuffled (seeded), once or round and round."""
    order = rng.permutation(len(bodies)).tolist() if shuffle else range(len(bodies))
    positions = itertools.cycle(order) if repeat and bodies else iter(order)
    for id, position in enumerate(positions):
        yield Request(id, "text", bodies[position])
