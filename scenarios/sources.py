"""Where a number comes from: every figure of a card is a value with its source and kind."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["datasheet", "measured", "published", "derived", "assumed"]
Value = TypeVar("Value")


class Spec(BaseModel):
    """Base of everything read from YAML: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Source(Spec):
    """Origin of a number: the document, measurement or reasoning, and which of these it is."""

    source: str = Field(min_length=3)
    kind: Kind


class Sourced(Source, Generic[Value]):
    """A number of a card with its origin."""

    value: Value
