"""Where the expert-parallel ranks lie: rank r is `tp` neighbouring devices, nodes are equal runs of devices."""

from __future__ import annotations

from dataclasses import dataclass

from scenarios.errors import ScenarioError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayout:
    """Devices of the expert-parallel group. Raises ScenarioError where ranks do not fill the devices.

    sources  devices that hold the tokens where they are others than those of the experts; 0 where they are the same.
    """

    n_devices: int
    devices_per_node: int
    tp: int = 1
    sources: int = 0

    def __post_init__(self) -> None:
        if self.n_devices % self.devices_per_node:
            raise ScenarioError(f"{self.n_devices} devices are not whole nodes of {self.devices_per_node}")
        if self.devices_per_node % self.tp:
            raise ScenarioError(
                f"expert tensor parallelism {self.tp} does not divide the {self.devices_per_node} devices of a node"
            )

    @property
    def n_sources(self) -> int:
        """Devices that hold tokens."""
        return self.sources or self.n_devices

    @property
    def n_ranks(self) -> int:
        """Expert-parallel ranks."""
        return self.n_devices // self.tp

    @property
    def n_nodes(self) -> int:
        """Nodes."""
        return self.n_devices // self.devices_per_node

    @property
    def ranks_per_node(self) -> int:
        """Expert-parallel ranks of a node."""
        return self.devices_per_node // self.tp
