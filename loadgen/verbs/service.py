"""The flags that describe a service, shared by the verbs that scale a run's energy to one."""

from __future__ import annotations

import argparse
from typing import Any

from loadgen.errors import ConfigError


def add_flags(verb: argparse.ArgumentParser) -> None:
    """Adds the group. Nothing has a default: what is not given is missing in the figures, and said."""
    group = verb.add_argument_group(
        "at the size of a service",
        "energy, cost and CO2e a day and a year, and a score in the terms of SCI (no claim of conformity)",
    )
    group.add_argument(
        "--requests-per-day",
        metavar="N",
        type=float,
        help="how many successes a day; the other flags need it",
    )
    group.add_argument(
        "--pue", metavar="X", type=float, help="energy of the data centre over that of its computers, >= 1"
    )
    group.add_argument("--price-per-kwh", metavar="P", type=float, help="price of electricity")
    group.add_argument("--currency", metavar="C", help="of the price (default EUR)")
    grid = group.add_mutually_exclusive_group()
    grid.add_argument("--grid-intensity", metavar="G", type=float, help="of the electricity, gCO2e/kWh")
    grid.add_argument(
        "--grid",
        metavar="CODE",
        help="or a country's yearly average: FR, DE, US, EU, world, ... (a wrong code lists them)",
    )
    group.add_argument("--embodied-kg", metavar="KG", type=float, help="CO2e of making all the hardware")
    group.add_argument("--embodied-years", metavar="Y", type=float, help="its life")
    group.add_argument("--embodied-source", metavar="TEXT", help="whose assessment that is")
    group.add_argument("--embodied-hours-per-day", metavar="H", type=float, help="reserved (default 24)")
    group.add_argument(
        "--embodied-share", metavar="S", type=float, help="of the hardware, 0 to 1 (default 1)"
    )


def given(args: argparse.Namespace) -> dict[str, Any] | None:
    """What was said of the service, as keywords of `analysis.study.scale.Service`; None when nothing was.

    Raises ConfigError when something was said but not the number of requests.
    """
    said = {
        "requests_per_day": args.requests_per_day,
        "pue": args.pue,
        "price_per_kwh": args.price_per_kwh,
        "currency": args.currency,
        "grid": args.grid,
        "grid_g_per_kwh": args.grid_intensity,
        "embodied_kg": args.embodied_kg,
        "embodied_years": args.embodied_years,
        "embodied_source": args.embodied_source,
        "embodied_hours_per_day": args.embodied_hours_per_day,
        "embodied_share": args.embodied_share,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if said and "requests_per_day" not in said:
        raise ConfigError("a service needs --requests-per-day N: there is nothing to scale by without it")
    return said or None
