"""A sweep from its file to its table: what is left of it is run, over processes, and kept row by row."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen import pool, shipped
from loadgen.config import show
from loadgen.errors import ConfigError, LoadgenError
from loadgen.progress import CountView
from loadgen.sweep import store as stores
from loadgen.sweep.point import Measure, Row, row_of
from loadgen.sweep.store import Store
from loadgen.sweep.sweep_file import Point, Sweep, read_sweep


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: a ``file`` (or the one that ``resume`` was made from), changes to it, where, how."""

    file: str | None
    overrides: tuple[str, ...] = ()
    parent: Path = Path("sweeps")
    resume: Path | None = None
    http: bool = False
    workers: int | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What came of it: the sweep, its directory, the rows that are there, whether all are."""

    sweep: Sweep
    store: Store
    rows: list[Row]

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.store.path

    @property
    def manifest(self) -> dict[str, Any]:
        """Its sweep.json."""
        return self.store.manifest

    @property
    def wanted(self) -> dict[str, Any]:
        """What the file says besides its points: comparisons, a front, figures."""
        return self.sweep.sheet.model_dump()

    @property
    def whole(self) -> bool:
        """Whether every point has its row."""
        return len(self.rows) == len(self.sweep.points)


def order_of(flags: argparse.Namespace) -> Order:
    """The order that the flags of ``loadgen sweep`` give."""
    return Order(
        flags.file,
        tuple(flags.set),
        flags.output_dir,
        flags.resume,
        http=flags.http,
        workers=flags.workers,
        quiet=flags.quiet,
    )


def read(order: Order) -> Sweep:
    """The sweep of an order. Raises ConfigError, RunDirError."""
    if order.file is not None:
        return read_sweep(shipped.find(order.file, "sweep"), order.overrides, http=order.http)
    if order.resume is None:
        raise ConfigError("expected a sweep's file, or --resume DIR")
    manifest = stores.read_manifest(order.resume)
    path = Path(manifest["file"])
    if not path.is_file():
        raise ConfigError(f"--resume {order.resume}: its file {path} is gone; name the sweep's file too")
    return read_sweep(path, [*manifest["set"], *order.overrides], http=manifest["http"])


def points_of(order: Order) -> list[str]:
    """The points of an order, a line each. Raises ConfigError, RunDirError."""
    sweep = read(order)
    return [
        f"{point.number}  " + "  ".join(f"{key}={show(label)}" for key, label in point.levels.items())
        for point in sweep.points
    ]


def run(order: Order, measure: Measure) -> Swept:
    """Runs the points that have no row yet. Ctrl-C ends it and keeps the rows.

    Goes on in ``order.resume``, or in the latest unfinished directory of the same points.
    ``measure``: of a run directory, for the whole path. Raises LoadgenError.
    """
    sweep = read(order)
    if order.resume is not None:
        store: Store | None = stores.resumed(order.resume, sweep)
    else:
        store = stores.unfinished(order.parent, sweep)
    talk = Console(stderr=True)
    if store is None:
        store = stores.create(order.parent, sweep, order.overrides, http=order.http)
    http = bool(store.manifest["http"])
    with store.writing() as file:
        done = {int(row["point"]) for row in store.rows()}
        left = [point for point in sweep.points if point.number not in done]
        if done and left and not order.quiet:
            talk.print(
                f"going on with {len(left)} of {len(sweep.points)} points in {store.path}", highlight=False
            )
        store.status("running")
        task = Task(tuple(left), sweep.sheet.draws, measure if http else None)
        what = "sweep: {} of {} points"
        rows = pool.each(task, range(len(left)), what=what, workers=order.workers)
        try:
            with CountView(talk, "points", len(left), quiet=order.quiet) as view:
                for _, row in rows:
                    stores.append(file, row)
                    view.advance()
        except (KeyboardInterrupt, LoadgenError) as exc:
            rows.close()  # type: ignore[attr-defined]
            store.status("interrupted")
            kept = f"{len(store.rows())} of {len(sweep.points)} points are kept"
            if isinstance(exc, LoadgenError):
                talk.print(f"ended by a mistake: {kept} in {store.path}", highlight=False, soft_wrap=True)
                raise
            talk.print(
                f"interrupted: {kept}; go on with: loadgen sweep --resume {store.path}",
                highlight=False,
                soft_wrap=True,
            )
        else:
            store.status("complete")
        kept_rows = store.rows()
        store.write_table(kept_rows)
    return Swept(sweep, store, kept_rows)


@dataclass(frozen=True, slots=True)
class Task:
    """What a process of the pool does: the row of the point at a place."""

    points: tuple[Point, ...]
    draws: int
    measure: Measure | None

    def __call__(self, place: int) -> Row:
        """The row. Raises LoadgenError that names the point."""
        point = self.points[place]
        try:
            return row_of(point, draws=self.draws, measure=self.measure)
        except LoadgenError as exc:
            named = ", ".join(f"{key} {label}" for key, label in point.levels.items())
            raise type(exc)(f"point {point.number} ({named}): {exc}") from exc
