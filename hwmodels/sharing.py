"""Fair shares of one bandwidth between concurrent users, such as the DRAM of a host."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scenarios.errors import HardwareError


def fair_shares(demands: ArrayLike, capacity: ArrayLike) -> NDArray[np.float64]:
    """Max-min fair share of every user: float64[..., user], in the unit of the demands (bytes/s).

    demands   float[..., user]: what every user would take alone.
    capacity  float[...]: what there is.

    share = min(demand, level) with the one level at which the shares sum to min(capacity, sum of demands). With the
    demands d_0 <= d_1 <= ... of n users, level = max over i of (capacity - sum of d_j for j < i) / (n - i): giving
    the i smallest users all they want leaves that to each of the others (Bertsekas and Gallager, Data Networks, 6.5.2).

    Nobody gets more than asked for, nothing is left idle while somebody wants more, equal demands get equal shares.
    Raises HardwareError where a demand or the capacity is negative or not finite.
    """
    wanted, available = np.asarray(demands, np.float64), np.asarray(capacity, np.float64)
    for name, values in (("demand", wanted), ("capacity", available)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise HardwareError(f"a {name} of a shared bandwidth must be finite and zero or more, got {values}")
    n_users = wanted.shape[-1]
    if n_users == 0:
        return np.zeros(np.broadcast_shapes(wanted.shape, (*available.shape, 0)))
    ascending = np.sort(wanted, axis=-1)
    served = np.zeros_like(ascending)
    np.cumsum(ascending[..., :-1], axis=-1, out=served[..., 1:])
    level = ((available[..., np.newaxis] - served) / np.arange(n_users, 0, -1)).max(axis=-1, keepdims=True)
    shares: NDArray[np.float64] = np.minimum(wanted, np.maximum(level, 0.0))
    return shares
