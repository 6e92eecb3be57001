"""Runs of one model on one board: every fit that they allow, and why not the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import orjson
import pandas as pd

from analysis.attribution import Attribution
from analysis.attribution.activity import Activity, cached_share
from analysis.attribution.weights import Weights
from analysis.fit.build import fit_form, hardly, words
from analysis.fit.estimate import FEWEST, Ints, Solution
from analysis.fit.forms import FORMS, Form, design
from analysis.fit.model import FitError, Fitted, Load, Model
from analysis.fit.physical import physical
from analysis.fit.sample import ALONE, Sample, sample
from analysis.fit.slices import DECODE, PREFILL, TERMS, joint
from analysis.run import Run
from analysis.served import embedded_section, gpu_of, model_of
from analysis.stats import LEVEL, student
from loadgen.types import Floats

Subject = Mapping[str, str | int | None]
MOSTLY = 0.5
"""Share of the successes that must have been alone for laws of one request."""
_HELD = {"profile": "board profile", "sm_clock_mhz": "SM clock in MHz", "power_cap_w": "power cap in W"}
"""What a simulated board may have been set to; without it, it is the table's, at its own clock and limit."""
_SHOWN = {"constants": "hardware.draw", "label": "energies", **_HELD}
BATCHED = (
    "most requests were not alone: prefill and decode times contain queueing and the work of others, joules "
    "are shares of common steps; the study's forms describe this load, not the model (one at a time: "
    "load.pattern closed_loop with max_in_flight 1)"
)
SHARED = "most requests were not alone: a request's joules over its seconds are a share of a power, no power"


def fit(runs: Sequence[Run]) -> Model:
    """The study's forms and the physical form, fitted to all runs together.

    Of requests that were alone on the server, if most were; else of all, and marked so. A fit that
    the data do not allow stands in `Model.refused` with the reason. Runs must have the same
    model, board at the same clock and cap, number format, server and kind of energy: raises FitError
    naming what differs, also without runs, for one given twice and when nothing succeeded.
    """
    if not runs:
        raise FitError("fit: expected at least one run")
    _once(runs)
    subject = _common([subject_of(run) for run in runs], runs)
    samples = [sample(run) for run in runs]
    labels = {s.label for s in samples if s.label is not None}
    if len(labels) > 1:
        raise FitError(f"fit: energies are {words(sorted(labels))}: never taken together")
    succeeded = sum(len(run.ok) for run in runs)
    prefill, decode = (_joined([getattr(s, name) for s in samples]) for name in ("prefill", "decode"))
    notes = _notes(runs, samples)
    if not len(prefill):
        why = "; ".join(notes) or "no request succeeded"
        names = words([run.path.name for run in runs])
        raise FitError(f"fit: {names}: no request of which prefill and decode are known: {why}")
    lonely = prefill["in_flight"].to_numpy(dtype=np.float64) <= ALONE
    load: Load = "one at a time" if float(lonely.mean()) >= MOSTLY else "batched"
    if load == "batched":
        notes = [BATCHED, *notes]
    elif not lonely.all():
        notes.append(f"{int((~lonely).sum())} of {len(lonely)} were left out: others were in flight")
    if load == "one at a time":
        prefill, decode = (frame[frame["in_flight"] <= ALONE] for frame in (prefill, decode))
    refused: dict[str, str] = {}
    attributions = [s.attribution for s in samples if s.attribution is not None]
    fitted = _requests(prefill, decode, next((s.reason for s in samples if s.reason), None), refused)
    if load == "one at a time" and attributions:
        fitted = _alone(samples, prefill, decode, fitted, refused)
    if load == "batched":
        fitted = [found for found in fitted if not found.name.startswith("P_")]
        refused |= {"P_prefill": SHARED, "P_decode": SHARED}
    fitted += _steps([s.did for s in samples if s.did.stamped], refused)
    weights, tariffs = _weights(attributions, refused)
    return Model(
        subject=subject,
        runs=tuple(run.path.name for run in runs),
        load=load,
        label=next(iter(labels), None),
        requests=succeeded,
        alone=int(lonely.sum()),
        fitted=(*fitted, *tariffs),
        refused=refused,
        weights=weights,
        notes=tuple(notes),
    )


def subject_of(run: Run) -> Subject:
    """What runs must share to be fitted together, as the manifest tells; None where it does not."""
    server = run.manifest.get("server") or {}
    gpu, model = gpu_of(run), model_of(run)
    names = sorted({str(row["name"]) for row in run.manifest.get("gpus") or () if row.get("name")})
    boards = [name for name in run.series if "gpu" in name.rpartition("/")[2] and "." not in name]
    hardware, profile = embedded_section(run, "hardware"), server.get("profile")
    held: dict[str, str | None] = dict.fromkeys(_HELD)
    if profile:
        constants = orjson.dumps([profile.get("gpu"), profile.get("efficiency")], option=orjson.OPT_SORT_KEYS)
        held["profile"] = hashlib.sha256(constants).hexdigest()[:8]
    for key in ("sm_clock_mhz", "power_cap_w"):
        if hardware.get(key) is not None:
            held[key] = f"{hardware[key]:g}"
    return {
        "model": model.id if model is not None else server.get("model"),
        "gpu": gpu.id if gpu is not None else server.get("gpu") or (words(names) if names else None),
        "dtype": server.get("dtype"),
        "boards": len(boards) or None,
        "shards": server.get("shards"),
        "server": server.get("kind"),
        "scheduler": server.get("scheduler"),
        "constants": hardware.get("draw"),
        **{key: value for key, value in held.items() if value is not None},
    }


def _once(runs: Sequence[Run]) -> None:
    """Raises FitError for a run given twice: its requests would count as more than they are."""
    seen = set()
    for run in runs:
        begun = (run.manifest.get("anchors") or {}).get("wall_utc")
        same = (run.path.name, run.manifest.get("scenario_hash"), begun)
        if begun is not None and same in seen:
            raise FitError(f"fit: expected each run once, got {run.path.name} again")
        seen.add(same)


def _common(subjects: Sequence[Subject], runs: Sequence[Run]) -> Subject:
    def told(subject: Subject, key: str) -> str:
        return str(subject.get(key) or ("none" if key in _HELD else "not told"))

    first = subjects[0]
    for subject, run in zip(subjects[1:], runs[1:], strict=True):
        differing = [
            f"{_SHOWN.get(key, key)} {told(first, key)} and {told(subject, key)}"
            for key in dict.fromkeys([*first, *subject])
            if first.get(key) != subject.get(key)
        ]
        if differing:
            raise FitError(
                f"fit: {runs[0].path.name} and {run.path.name} cannot be fitted together: "
                f"they differ in {words(differing)}"
            )
    return first


def _notes(runs: Sequence[Run], samples: Sequence[Sample]) -> list[str]:
    notes = list(dict.fromkeys(note for s in samples for note in s.notes))
    notes += [f"no joules: {s.reason}" for s in samples if s.reason]
    cached = max(cached_share(run) for run in runs)
    if cached > 0.01:
        notes.append(
            f"{100 * cached:.0f} % of the prompt tokens came from the prefix cache: s counts them, the "
            "server did not compute them"
        )
    if not any(len(run.ok) for run in runs):
        notes.append("no request succeeded")
    return list(dict.fromkeys(notes))


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All runs', with the number of the run, in order of time within each."""
    numbered = [frame.assign(series=k) for k, frame in enumerate(frames)]
    filled = [frame for frame in numbered if len(frame)] or numbered[:1]
    return pd.concat(filled, ignore_index=True)


def _requests(
    prefill: pd.DataFrame, decode: pd.DataFrame, reason: str | None, refused: dict[str, str]
) -> list[Fitted]:
    fitted = []
    for name, frame, inputs, value in (
        ("t_prefill", prefill, ("s",), "seconds"),
        ("t_decode", decode, ("s", "n"), "seconds"),
        ("E_prefill", prefill, ("s",), "joules"),
        ("E_decode", decode, ("s", "n"), "joules"),
        ("E_prefill_active", prefill, ("s",), "active_j"),
        ("E_decode_active", decode, ("s", "n"), "active_j"),
        ("P_prefill", prefill, ("seconds",), "joules"),
        ("P_decode", decode, ("seconds",), "joules"),
    ):
        if value != "seconds" and reason is not None and not frame[value].notna().any():
            refused[name] = reason
            continue
        sizes = {"t" if key == "seconds" else key: _column(frame, key) for key in inputs}
        beside = {"in_flight": _column(frame, "in_flight")}
        try:
            fitted.append(fit_form(FORMS[name], sizes, _column(frame, value), _series(frame), beside=beside))
        except FitError as exc:
            refused[name] = str(exc)
    return fitted


def _alone(
    samples: Sequence[Sample],
    prefill: pd.DataFrame,
    decode: pd.DataFrame,
    fitted: Sequence[Fitted],
    refused: dict[str, str],
) -> list[Fitted]:
    """The same fits, those of joules with the constants of the slices instead of attributed requests'."""
    try:
        found = joint(samples)
    except FitError as exc:
        refused |= {f.name: str(exc) for f in fitted if f.unit == "J"}
        return [f for f in fitted if f.unit != "J"]
    said = f"constants from {found.n} slices of {found.slice_s:.2g} s, residuals of attributed requests"
    groups = [[TERMS[k] for k in group] for group in found.total.tangled]
    kept = []
    for fit_of in fitted:
        if fit_of.unit != "J":
            kept.append(fit_of)
            continue
        phase = fit_of.name.split("_")[1]
        which, frame = (PREFILL, prefill) if phase == "prefill" else (DECODE, decode)
        if fit_of.name.startswith("P_"):
            kept.append(_power(fit_of, FORMS[f"E_{phase}"], found.part(which), frame, said))
            continue
        form, active = FORMS[fit_of.name], fit_of.name.endswith("_active")
        own = {factor.name for factor in form.factors}
        notes = [said, *(hardly(g, found.total.condition) for g in groups if own & set(g))]
        sizes = {key: _column(frame, key) for key in form.inputs}
        joules = _column(frame, "active_j" if active else "joules")
        beside = {"in_flight": _column(frame, "in_flight")}
        solution = found.part(which, active=active)
        if not any(solution.kept):
            refused[fit_of.name] = f"{found.n} slices do not tell it from the other phase"
            continue
        kept.append(
            fit_form(form, sizes, joules, _series(frame), beside=beside, notes=notes, solution=solution)
        )
    return kept


def _power(found: Fitted, form: Form, solution: Solution, frame: pd.DataFrame, said: str) -> Fitted:
    """The mean power of a phase from the constants of its joules: mean of both over the requests."""
    mean = design(form, {key: _column(frame, key) for key in form.inputs}, len(frame)).mean(axis=0)
    seconds = float(_column(frame, "seconds").mean())
    value = float(mean @ solution.value) / seconds
    variance = float(mean @ solution.covariance @ mean) / seconds**2
    half = student.two_sided(LEVEL, solution.freedom) * float(np.sqrt(max(variance, 0.0)))
    (term,) = found.terms
    predicted = value * found.residuals.inputs["t"]
    low, high = (None, None) if np.isnan(variance) else (value - half, value + half)
    return replace(
        found,
        terms=(replace(term, value=value, low=low, high=high),),
        covariance=np.array([[variance]]),
        freedom=solution.freedom,
        block=solution.block,
        residuals=replace(found.residuals, predicted=predicted),
        notes=(said,),
    )


def _column(frame: pd.DataFrame, name: str) -> Floats:
    return np.asarray(frame[name].to_numpy(), dtype=np.float64)


def _series(frame: pd.DataFrame) -> Ints:
    return np.asarray(frame["series"].to_numpy(), dtype=np.int64)


def _steps(activities: Sequence[Activity], refused: dict[str, str]) -> list[Fitted]:
    """Durations of steps, by what was in them, where stamps show steps."""
    if not activities:
        why = "tokens have no stamps of their own (not streamed or not kept): no step can be seen"
        refused |= {"prefill_step": why, "decode_step": why}
        return []
    parts = []
    for k, did in enumerate(activities):
        prompts, decoding = did.prefill_tokens, (did.prefill_tokens == 0).astype(np.float64)
        parts.append(
            pd.DataFrame(
                {
                    "s": did.per_step(prompts),
                    "q": did.per_step(prompts**2),
                    "rows": did.per_step(decoding),
                    "tokens": did.per_step(decoding * did.decode_tokens),
                    "context": did.per_step(decoding * did.context_tokens),
                    "seconds": did.duration_s,
                    "series": k,
                }
            )
        )
    steps = pd.concat(parts, ignore_index=True)
    steps = steps[steps["seconds"] > 0]
    pure = steps[(steps["s"] == 0) & np.isclose(steps["tokens"], steps["rows"])]
    filling = steps[(steps["s"] > 0) & (steps["rows"] == 0)]
    notes: tuple[str, ...] = ()
    if len(filling) < FEWEST:
        filling, notes = steps[steps["s"] > 0], ("beside rows that decode, whose time is in it",)
    fitted = []
    for name, frame, inputs, said in (
        ("prefill_step", filling, ("s", "q"), notes),
        ("decode_step", pure, ("rows", "context"), ()),
    ):
        sizes = {key: _column(frame, key) for key in inputs}
        beside = {"rows": _column(frame, "rows")}
        try:
            fitted.append(
                fit_form(
                    FORMS[name], sizes, _column(frame, "seconds"), _series(frame), beside=beside, notes=said
                )
            )
        except FitError as exc:
            refused[name] = str(exc)
    return fitted


def _weights(
    attributions: Sequence[Attribution], refused: dict[str, str]
) -> tuple[Weights | None, tuple[Fitted, ...]]:
    if not attributions:
        refused["weights"] = "no run has energy to fit them to"
        return None, ()
    try:
        return physical(attributions)
    except FitError as exc:
        refused["weights"] = str(exc)
        return None, ()
