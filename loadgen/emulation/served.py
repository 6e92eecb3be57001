"""What became of the jobs: instants of each request and the energy of the replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from loadgen.types import Floats

if TYPE_CHECKING:
    from loadgen.emulation.jobs import Jobs
    from loadgen.emulation.works import Works

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Served:
    """One replica's service of its jobs, simulated. Instants in seconds, (n,), NaN where there is none.

    ``sent_s``: when the client sent it (later than due behind a ``max_in_flight``); ``first_s`` and
    ``done_s``: ends of the steps that gave its first and last token. A request that the server or the
    client's cap turned away has ``sent_s`` at most. ``busy_j`` and ``idle_j``: joules of all boards
    from 0 to ``end_s``, the end of the last step or the last due time. ``kv_peak_blocks`` of
    ``kv_blocks``: the most that were not available at the start of a step. ``works``: what each step
    did, where asked for.
    """

    jobs: Jobs
    sent_s: Floats
    first_s: Floats
    done_s: Floats
    cached_tokens: npt.NDArray[np.int64]
    preemptions: int
    end_s: float
    busy_s: float
    busy_j: float
    idle_j: float
    most_in_flight: int
    kv_peak_blocks: int
    kv_blocks: int
    works: Works | None = None

    @property
    def ok(self) -> Mask:
        """Which requests were served to the end, (n,)."""
        return np.asarray(~np.isnan(self.done_s))

    @property
    def energy_j(self) -> float:
        """Joules of all boards, idle included."""
        return self.busy_j + self.idle_j

    @property
    def due_s(self) -> Floats:
        """When each fell due; in a closed loop when it was sent."""
        return self.sent_s if self.jobs.closed else self.jobs.due_s

    @property
    def ttft_s(self) -> Floats:
        """From sending to the first token, (n,)."""
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """Seconds per token after the first, (n,); NaN for replies of one token."""
        tokens = self.jobs.lengths.reply_tokens
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(tokens > 1, (self.done_s - self.first_s) / (tokens - 1), np.nan)

    @property
    def e2e_s(self) -> Floats:
        """From sending to the last token, (n,)."""
        return self.done_s - self.sent_s

    @property
    def hold_s(self) -> Floats:
        """From demand to sending: what shaping and the client's cap cost, (n,)."""
        return self.sent_s - (self.sent_s if self.jobs.closed else self.jobs.demand_s)

    @property
    def per_success_j(self) -> float | None:
        """Energy over requests served; None without one."""
        n = int(self.ok.sum())
        return self.energy_j / n if n else None
