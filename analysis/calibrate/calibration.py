"""Runs in, a hardware profile out: the constants they tell, and how well those predict what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.calibrate import powers, times
from analysis.calibrate.estimate import Answer
from analysis.calibrate.observed import BLOCKS, Observed, observe
from analysis.calibrate.powers import Slices, fit_powers, fit_slices
from analysis.calibrate.subject import subject_of
from analysis.calibrate.times import Steps, constants, fit_times, steps_of
from analysis.run import Run
from analysis.served import embedded_section
from loadgen.errors import ConfigError
from loadgen.physics.profile import Fitted, Label, Profile
from loadgen.types import Floats

_FOLDS = 4
"""Parts of a single run, each predicted from the others."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Relative errors of what was not fitted to: their median and 95th percentile size, of ``n``."""

    what: str
    median: float
    p95: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """``profile`` with the constants that the runs told; ``start`` as it was.

    ``times``, ``powers``: what the fits say; the latter None where there is no energy, with
    ``no_power`` the reason. ``folds``: what was left out in turn.
    """

    start: Profile
    profile: Profile
    times: Answer
    powers: Answer | None
    no_power: str | None
    held_out: tuple[HeldOut, ...]
    folds: str


def calibrate(
    runs: Sequence[Run], *, gpu: str | None = None, model: str | None = None, dtype: str | None = None
) -> Calibration:
    """Fits the board's constants to the runs, all of one board.

    ``gpu``: an id or a profile to start from, in place of what the runs name; ``model`` and ``dtype``
    likewise. Raises ConfigError in one line when that cannot be.
    """
    for k, run in enumerate(runs):
        _refuse(run)
        if any(run.path.samefile(other.path) for other in runs[:k]):
            raise ConfigError(f"calibrate: {run.path}: expected every run once, got it twice")
    subjects = [subject_of(run, gpu=gpu, model=model, dtype=dtype) for run in runs]
    first = subjects[0]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.named != first.named:
            raise ConfigError(
                f"calibrate: {runs[0].path.name} is of {first.named} and {run.path.name} of {subject.named}: "
                "expected runs of one board"
            )
        if subject.embedded != first.embedded:
            raise ConfigError(
                f"calibrate: {runs[0].path.name} and {run.path.name}: expected all measured or all simulated"
            )
    seen = [observe(run, subject) for run, subject in zip(runs, subjects, strict=True)]
    label: Label = "simulated" if first.embedded else "measured"
    steps, start = steps_of(seen), first.base
    told = fit_times(steps, start.efficiency)
    values: dict[str, float] = {}
    fitted: dict[str, Fitted] = {}
    offset = len(start.runs)
    _add(values, fitted, times.NAMES, told, constants(told), label, [offset + k for k in range(len(runs))])
    _possible(values, start)
    ways, reasons = _energies(seen)
    power = fit_powers(list(ways.values()), start.gpu) if ways else None
    if power is not None:
        ends = {
            name: (value, max(value - half, 0.0), value + half)
            for name, value, half in zip(powers.NAMES, power.answer.value, power.answer.half, strict=True)
        }
        _add(values, fitted, powers.NAMES, power.answer, ends, label, [offset + k for k in ways])
        _rising(values, fitted, start)
    slices = () if power is None else power.slices
    folds, held_out = _held_out(steps, slices, start, len(runs))
    where = f"{len(runs)} {label} run{'s' * (len(runs) != 1)}"
    profile = start.with_fitted(values, fitted, f"calibrated to {where}: {_names(runs)}")
    found = Calibration(
        start,
        profile,
        told,
        None if power is None else power.answer,
        _why_not(reasons, ways),
        held_out,
        folds,
    )
    described = tuple(start.runs) + tuple(_described(run, label) for run in runs)
    shifts_s = () if power is None else power.shifts_s
    return _with(found, described, label, shifts_s)


def _with(
    found: Calibration, runs: tuple[Mapping[str, Any], ...], label: Label, shifts_s: Sequence[float]
) -> Calibration:
    told = {"times": _said(found.times)}
    if found.powers is not None:
        told["powers"] = _said(found.powers) | {"shifts_s": [float(s) for s in shifts_s]}
    calibration = told | {
        "no_power": found.no_power,
        "folds": found.folds,
        "held_out": [
            {"what": h.what, "median_error": h.median, "p95_error": h.p95, "n": h.n} for h in found.held_out
        ],
    }
    profile = replace(found.profile, runs=runs, label=label, calibration=calibration)
    return replace(found, profile=profile)


def _said(found: Answer) -> dict[str, Any]:
    return {
        "n": found.n,
        "condition": found.condition if np.isfinite(found.condition) else None,
        "tangled": [list(group) for group in found.tangled],
        "kept": dict(found.kept),
    }


def _refuse(run: Run) -> None:
    for key in ("sm_clock_mhz", "power_cap_w"):
        value = embedded_section(run, "hardware").get(key)
        if value is not None:
            raise ConfigError(
                f"{run.path.name}: server.hardware.{key}: expected none, as the table's constants are of a "
                f"board at its own clock and limit, got {value:g}"
            )
    if not len(run.requests) or run.end_s is None:
        raise ConfigError(f"{run.path.name}: nothing was done in this run")


def _energies(seen: Sequence[Observed]) -> tuple[dict[int, tuple[powers.Energies, ...]], list[str]]:
    ways, reasons = {}, []
    for k, o in enumerate(seen):
        found = powers.energies_of(o)
        if isinstance(found, str):
            reasons.append(f"{o.run.path.name}: {found}")
        else:
            ways[k] = found
    return ways, reasons


def _why_not(reasons: Sequence[str], ways: Mapping[int, Any]) -> str | None:
    if not reasons:
        return None
    left = "no power constants" if not ways else f"{len(reasons)} runs without"
    return f"{left}: {reasons[0]}"


def _add(
    values: dict[str, float],
    fitted: dict[str, Fitted],
    names: Sequence[str],
    told: Answer,
    ends: Mapping[str, tuple[float, float, float]],
    label: Label,
    runs: Sequence[int],
) -> None:
    for name, is_told in zip(names, told.told, strict=True):
        if is_told:
            value, low, high = (float(x) for x in ends[name])
            values[name] = value
            fitted[name] = Fitted(low, high, label, tuple(runs))


def _possible(values: Mapping[str, float], start: Profile) -> None:
    for name in ("compute", "bandwidth"):
        share = values.get(name, 0.0)
        if share > 1.0:
            raise ConfigError(
                f"calibrate: {name} {share:.3g}: expected at most 1; the runs are faster than the peaks of "
                f"{start.gpu.id} allow: is it the right board, model and number format?"
            )


def _rising(values: dict[str, float], fitted: dict[str, Fitted], start: Profile) -> None:
    """Holds ``active_w`` at the idle power where the two are not told apart; refuses what no board can be."""
    idle_w = values.get("context_idle_w", start.gpu.context_idle_w)
    active_w = values.get("active_w", start.gpu.active_w)
    told = fitted.get("active_w")
    if told is not None and active_w < idle_w <= told.high:
        values["active_w"] = active_w = idle_w
    if not idle_w <= active_w <= start.gpu.tdp_w:
        raise ConfigError(
            f"calibrate: active_w {active_w:.4g}: expected between context_idle_w {idle_w:.4g} and tdp_w "
            f"{start.gpu.tdp_w:.4g}: the runs' power does not follow the law of {start.gpu.id}"
        )


def _held_out(
    steps: Steps, slices: Sequence[Slices], start: Profile, runs: int
) -> tuple[str, tuple[HeldOut, ...]]:
    """Errors of steps and slices predicted from the other runs, or of one run from its other parts."""
    fold = steps.run if runs > 1 else steps.stretch * _FOLDS // BLOCKS
    left: list[Floats] = []
    for k in np.unique(fold):
        told = fit_times(steps.some(fold != k), start.efficiency)
        others = steps.some(fold == k)
        left.append(others.duration_s / others.law(told.value)[0] - 1.0)
    found = [_errors("duration of a step", np.concatenate(left))]
    if slices:
        found.append(_errors("energy of a slice", _energy_errors(slices, start)))
    what = "each run, from the others" if runs > 1 else "each quarter of the run, from the rest"
    return what, tuple(found)


def _energy_errors(slices: Sequence[Slices], start: Profile) -> Floats:
    tdp_w = start.gpu.tdp_w
    if len(slices) > 1:
        parts = [([s for j, s in enumerate(slices) if j != k], [slices[k]]) for k in range(len(slices))]
    else:
        quarter = np.arange(len(slices[0].energy_j)) * _FOLDS // len(slices[0].energy_j)
        whole = slices[0]
        parts = [([whole.some(quarter != k)], [whole.some(quarter == k)]) for k in range(_FOLDS)]
    left = []
    for rest, others in parts:
        told = fit_slices(rest, start.gpu)[0]
        left += [s.energy_j / s.law(told.value, tdp_w)[0] - 1.0 for s in others]
    return np.concatenate(left)


def _errors(what: str, relative: Floats) -> HeldOut:
    size = np.abs(relative)
    return HeldOut(what, float(np.median(size)), float(np.quantile(size, 0.95)), len(size))


def _names(runs: Sequence[Run]) -> str:
    names = [run.path.name for run in runs]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _described(run: Run, label: Label) -> dict[str, Any]:
    manifest = run.manifest
    anchors = manifest.get("anchors") or {}
    return {
        "name": run.path.name,
        "label": label,
        "scenario_hash": manifest.get("scenario_hash"),
        "utc": anchors.get("wall_utc"),
        "requests": len(run.requests),
    }
