"""Devices of all nodes that there are: which are in use, free, or dead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scenarios.errors import ScenarioError
from scenarios.scaling_specs import FailureSpec


class TooFewDevices(ScenarioError):
    """Devices that a change asks for are in use, or dead by now."""


@dataclass(slots=True, kw_only=True)
class Devices:
    """Devices numbered node by node; groups of `unit` neighbours come and go together."""

    unit: int
    per_node: int
    n_nodes: int
    used: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)

    @property
    def n_devices(self) -> int:
        """Devices of all nodes."""
        return self.n_nodes * self.per_node

    def take(self, devices: Iterable[int]) -> tuple[int, ...]:
        """Mark devices as in use."""
        taken = tuple(devices)
        self.used |= set(taken)
        return taken

    def free(self, devices: Iterable[int]) -> None:
        """Devices that nobody uses any more."""
        self.used -= set(devices)

    def resized(self, current: Sequence[int], n_devices: int) -> tuple[int, ...]:
        """`n_devices` of which as many as can be are those in use, which keep their order; new ones are taken.

        Raises TooFewDevices.
        """
        if n_devices <= len(current):
            return tuple(current[:n_devices])
        nodes = {device // self.per_node for device in current}
        wanted = n_devices - len(current)
        near, far = self._free_units(nodes), self._free_units(set(range(self.n_nodes)) - nodes)
        if n_devices <= self.per_node:
            far = []  # a formation is part of one node, or whole nodes
        added = [device for unit in (*near, *far) for device in unit][:wanted]
        self._check(len(added), wanted)
        order = list(dict.fromkeys(device // self.per_node for device in (*current, *added)))
        return self.take(d for node in order for d in (*current, *added) if d // self.per_node == node)

    def fresh(self, n_devices: int) -> tuple[int, ...]:
        """`n_devices` that are free: of one node where they fit, else whole nodes. Raises TooFewDevices."""
        by_node = [[d for unit in self._free_units({node}) for d in unit] for node in range(self.n_nodes)]
        whole = min(n_devices, self.per_node)
        fitting = [devices[:whole] for devices in by_node if len(devices) >= whole]
        found = [device for devices in fitting for device in devices][:n_devices]
        self._check(len(found), n_devices)
        return self.take(found)

    def hit(self, failure: FailureSpec) -> tuple[int, ...]:
        """Devices that are gone by a failure: its own, or all of a node that is cut off."""
        if failure.link is not None:
            begin = failure.link.node * self.per_node
            return tuple(range(begin, begin + self.per_node))
        return (failure.device,) if failure.device is not None else ()

    def kill(self, devices: Iterable[int]) -> None:
        """Devices that nobody can use any more."""
        self.dead |= set(devices)

    def survivors(self, devices: Sequence[int]) -> tuple[int, ...]:
        """Those that can go on: groups without a dead device; on several nodes, whole nodes without one."""
        nodes = {device // self.per_node for device in devices}
        size = self.per_node if len(nodes) > 1 else self.unit
        lost = {device // size for device in self.dead}
        return tuple(device for device in devices if device // size not in lost)

    def _free_units(self, nodes: set[int]) -> list[range]:
        units = (range(begin, begin + self.unit) for begin in range(0, self.n_devices, self.unit))
        return [unit for unit in units if unit[0] // self.per_node in nodes and not set(unit) & (self.used | self.dead)]

    def _check(self, found: int, wanted: int) -> None:
        if found < wanted:
            raise TooFewDevices(
                f"{wanted} more devices are asked for, and {found} are left that fit: {self.n_nodes} "
                f"nodes of {self.per_node}, {len(self.used)} in use, {len(self.dead)} dead; raise scaling.nodes, "
                "or ask for fewer"
            )
