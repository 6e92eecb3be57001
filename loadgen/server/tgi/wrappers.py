"""The bodies of ``/invocations`` (SageMaker) and ``/vertex``, which wrap those of the other routes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import orjson

from loadgen.server.body import Fields, Unreadable, shown
from loadgen.server.tgi.chat import parse_chat
from loadgen.server.tgi.completions import parse_completion
from loadgen.server.tgi.errors import ApiError
from loadgen.server.tgi.validation import GenerateBody, Parameters, parse_generate


def parse_invocation(raw: bytes) -> GenerateBody | Literal["chat", "completion"]:
    """What an ``/invocations`` body is: that of ``POST /``, or one of OpenAI's, whichever reads first.

    Raises Unreadable when none does.
    """
    try:
        return parse_generate(raw)
    except Unreadable as error:
        if error.status != 422:
            raise
    if _reads(parse_chat, raw):
        return "chat"
    if _reads(lambda raw: parse_completion(raw, 1), raw):
        return "completion"
    raise Unreadable(
        422,
        "Failed to deserialize the JSON body into the target type: "
        "data did not match any variant of untagged enum SagemakerRequest",
    )


def _reads(parse: Callable[[bytes], object], raw: bytes) -> bool:
    try:
        parse(raw)
    except Unreadable:
        return False
    except ApiError:
        return True  # readable, and refused for what it says
    return True


def parse_vertex(raw: bytes) -> list[GenerateBody]:
    """The instances of a ``/vertex`` body, each a chat or ``inputs`` with parameters.

    Of the parameters only ``max_new_tokens`` and ``seed`` count, and sampling is on
    (vertex.rs). Raises Unreadable; ApiError for no instance, or a chat's tools.
    """
    fields = Fields(raw, "VertexRequest")
    fields.require("instances")
    instances = fields.top["instances"]
    if type(instances) is not list:
        raise fields.refused("instances", f"invalid type: {shown(instances)}, expected a sequence")
    if not instances:
        raise ApiError(422, "Input validation error", "Input validation error")
    bodies = []
    for i, instance in enumerate(instances):
        body = _instance(orjson.dumps(instance))
        if body is None:
            wrong = "data did not match any variant of untagged enum VertexInstance"
            raise fields.refused(f"instances[{i}]", wrong)
        bodies.append(body)
    return bodies


def _instance(raw: bytes) -> GenerateBody | None:
    try:
        given = parse_generate(raw, null_parameters=True)
    except Unreadable:
        try:
            return parse_chat(raw).bodies[0]
        except Unreadable:
            return None
    p = given.parameters
    kept = Parameters(
        do_sample=True,
        max_new_tokens=p.max_new_tokens,
        seed=p.seed,
        details=True,
        decoder_input_details=True,
        ignore_eos=p.ignore_eos,
    )
    return GenerateBody(given.inputs, kept)
