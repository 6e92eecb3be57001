"""The base of everything a user may configure: strict, frozen models whose mistakes name their place."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


def wrong(expected: str, key: str = "", got: str = "") -> PydanticCustomError:
    """A cross-field mistake, placed at ``key`` of the section it was found in."""
    return PydanticCustomError("scenario", "{expected}", {"expected": expected, "key": key, "got": got})


class Section(BaseModel):
    """A part of a configuration: no unknown keys, no silent conversion, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
