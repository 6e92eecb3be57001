"""The verb ``loadgen serve``: its flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from loadgen import launch_flags
from loadgen.verbs.numbers import at_least


def add_verb(verbs: Any, formatter: Any, go: Callable[[argparse.Namespace], int]) -> None:
    """Adds the verb to argparse's subparsers."""
    serve = verbs.add_parser(
        "serve",
        help="serve the TGI protocol from the simulated GPU",
        description="Serves TGI's and OpenAI's routes from a continuous-batching engine with the time and\n"
        "power of a simulated GPU. Text is made up; timing, batching, limits and errors are TGI's.",
        formatter_class=formatter,
    )
    serve.add_argument(
        "--host", "--hostname", default="127.0.0.1", help="address to bind (default %(default)s)"
    )
    serve.add_argument(
        "--port", type=at_least(0, 65535), default=8080, help="port, 0 for a free one (default %(default)s)"
    )
    serve.add_argument("--api-key", metavar="K", help="demand this bearer token on routes that generate")
    launch_flags.add_flags(serve)
    serve.set_defaults(go=go, parser=serve)
