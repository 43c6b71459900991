"""Writes the golden results anew and prints what changed: `python -m tests.golden.rewrite`, or `make golden`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import moesim
from moesim.api import compare, load
from scenarios.files import whole_file

FOLDER = Path(__file__).parent
SCENARIOS = ("decode", "two-nodes", "training")
RTOL = 1e-9


def golden_path(name: str) -> Path:
    """File of the stored result of a scenario."""
    return FOLDER / f"{name}.json"


def result_of(name: str) -> dict[str, Any]:
    """Metrics of every plan of a scenario, with what they rest on; only the metrics are ever compared."""
    full = compare(load(FOLDER / f"{name}.yaml")).as_json()
    return {
        "scenario": full["scenario"],
        "plans": {result["name"]: result["metrics"] | _breakdown(result["breakdown_s"]) for result in full["results"]},
        "constants": full["constants"],
        "provenance": full["provenance"] | {"moesim": moesim.__version__},
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """One line for every plan or metric that came, went, or differs by more than `RTOL`."""
    for plan in sorted(old["plans"].keys() | new["plans"].keys()):
        before, after = (result["plans"].get(plan, {}) for result in (old, new))
        for metric in sorted(before.keys() | after.keys()):
            was, now = before.get(metric), after.get(metric)
            if was is None or now is None:
                yield f"{plan}: {metric} {'is new' if was is None else 'is gone'}: {was if now is None else now}"
            elif abs(now - was) > RTOL * abs(was):
                change = f"{now / was - 1:+.3g}" if was else "from nothing"
                yield f"{plan}: {metric} {was:.12g} -> {now:.12g} ({change})"


def main() -> None:
    """Write all results anew."""
    for name in SCENARIOS:
        path, new = golden_path(name), result_of(name)
        old = json.loads(path.read_text()) if path.exists() else {"plans": {}}
        changed = list(differences(old, new))
        print("\n".join([f"{path.name}: {len(changed)} differences", *changed]))
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(new, indent=1) + "\n")


def _breakdown(parts_s: dict[str, float]) -> dict[str, float]:
    return {f"breakdown_s.{cause}": time_s for cause, time_s in parts_s.items()}


if __name__ == "__main__":
    main()
