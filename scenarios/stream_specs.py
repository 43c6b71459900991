"""What a scenario says of weights that stream from the host's memory, layer by layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenarios.sources import Spec

GeneratingName = Literal["cgopipe", "fastdecode", "flexgen", "flexgen-cpu", "vslpipe"]
StreamingName = Literal["cgopipe", "fastdecode", "flexgen", "flexgen-cpu", "vslpipe", "ring"]

GENERATING: frozenset[str] = frozenset({"cgopipe", "fastdecode", "flexgen", "flexgen-cpu", "vslpipe"})
"""Schedules of offline generation, in microbatches, with the cache in the host's memory."""
STREAMING: frozenset[str] = GENERATING | {"ring"}
"""Schedules that know weights on their way."""
HOST_ATTENTION: frozenset[str] = frozenset({"cgopipe", "fastdecode", "flexgen-cpu", "vslpipe"})
"""Those whose decode attention the host computes."""
PAGED: frozenset[str] = frozenset({"cgopipe", "vslpipe"})
"""Those that cut a layer's weights into pages, one with each microbatch."""
MIXED: frozenset[str] = frozenset({"vslpipe"})
"""Those whose passes hold prompts and decoding requests together."""


class StreamSpec(Spec):
    """Weights live in the host's memory; those of a layer are copied to the device for every pass."""

    weights: Literal["experts", "layers"] = Field(
        default="experts", description="what streams: routed experts, or all weights of a layer"
    )
    held: float = Field(default=0.0, ge=0, lt=1, description="share of these weights that the device keeps")
    slots: int = Field(default=2, gt=0, description="layers of streamed weights that the device has room for")
    link_frac: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the link's rate that weights reach; less from pageable memory",
    )
    host_frac: float = Field(
        default=1.0, gt=0, le=1, description="speed of attention on the host over that of the law of its cores"
    )
