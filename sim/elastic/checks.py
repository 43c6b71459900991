"""Changes that cannot be, refused before anything is simulated."""

from __future__ import annotations

from scenarios.errors import ScenarioError
from scenarios.scaling_specs import ScalingSpec
from scenarios.serving_specs import ServingSpec
from sim.elastic.formations import Formation, Former


def check_changes(spec: ServingSpec, former: Former, first: Formation) -> None:
    """Raise ScenarioError where an event, a controller or a failure names devices that are not there."""
    total = former.n_nodes * former.node_devices
    if spec.routes is not None:
        raise ScenarioError(
            "serving.routes: with scaling or failures tables alone price iterations; leave routes and rebalance "
            "out, or change placements by scaling.events"
        )
    for failure in spec.failures:
        if failure.device is not None and failure.device not in first.devices and failure.device >= total:
            raise ScenarioError(f"serving.failures: there is no device {failure.device}; there are {total}, from 0")
        if failure.link is not None and not (former.n_nodes > 1 and failure.link.node < former.n_nodes):
            raise ScenarioError(
                f"serving.failures: link of node {failure.link.node}: there are {former.n_nodes} nodes; a node without "
                "others has no network to lose"
            )
    if spec.scaling is None:
        return
    _check_replicas(spec.scaling, len(first.devices))
    sizes = [event.devices for event in spec.scaling.events if event.devices is not None]
    for n_devices in (*sizes, *_reachable(spec.scaling, len(first.devices), total)):
        check_size(n_devices, former, total)
    if spec.scaling.method == "extravagant" and sizes and max(sizes) + len(first.devices) > total:
        raise ScenarioError(
            f"serving.scaling: extravagant holds the {len(first.devices)} devices of the old engine and the "
            f"{max(sizes)} of the new one at once, and there are {total}; raise scaling.nodes"
        )


def check_size(n_devices: int, former: Former, total: int) -> None:
    """Raise ScenarioError where no engine can have so many devices."""
    node = former.node_devices
    if n_devices > total:
        raise ScenarioError(
            f"serving.scaling: {n_devices} devices are asked for, and there are {total} ({former.n_nodes} nodes of "
            f"{node}); raise scaling.nodes, or ask for fewer"
        )
    if n_devices % former.unit or (n_devices > node and n_devices % node):
        raise ScenarioError(
            f"serving.scaling: {n_devices} devices are no whole groups of {former.unit} devices of tensor parallelism "
            f"within a node, nor whole nodes of {node}"
        )


def _check_replicas(scaling: ScalingSpec, size: int) -> None:
    if scaling.method != "horizontal":
        return
    if any(event.placement is not None for event in scaling.events):
        raise ScenarioError("serving.scaling: horizontal adds replicas like the first one; leave placement out")
    sizes = [event.devices for event in scaling.events if event.devices is not None]
    sizes += [scaling.by] if scaling.controller is not None else []
    for n_devices in sizes:
        if n_devices % size:
            raise ScenarioError(
                f"serving.scaling: horizontal adds replicas of {size} devices; {n_devices} are no multiple of that"
            )


def _reachable(scaling: ScalingSpec, size: int, total: int) -> list[int]:
    """Sizes that the controller may come to."""
    if scaling.controller is None:
        return []
    most = scaling.most or total
    if most > total or not scaling.least <= size <= most:
        raise ScenarioError(
            f"serving.scaling: least {scaling.least} to most {most} devices, of {size} at the beginning and {total} in "
            "all; the beginning must lie between them, and most within all (raise scaling.nodes)"
        )
    down, up = range(size - scaling.by, scaling.least - 1, -scaling.by), range(size + scaling.by, most + 1, scaling.by)
    return [*down, *up]
