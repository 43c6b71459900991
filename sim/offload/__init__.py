"""Experts in the host's memory: what a device's slots hold in every step, decided from routing alone, and its price.

`wanted` says what steps ask of each layer, `rules` (and `arc`) who leaves, `guesses` what is copied ahead, `misses`
what is copied and what the host computes, `grades` in what precision; `replay` puts them together. `host_cache` says
what is read from a drive, `tiers` what lies below a device, `prices` gives the works of `sim.policies.cached` times.
"""
