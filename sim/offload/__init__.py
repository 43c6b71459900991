"""Experts in the host's memory: what a device's slots hold in every step, decided from routing alone, and its price.

`wanted` says what steps ask of each layer, `rules` (and `arc`) who leaves, `guesses` what is copied ahead, `misses`
what is copied and what the host computes, `grades` in what precision; `replay` puts them together, `prices` gives the
works of `sim.policies.cached` their times.
"""
