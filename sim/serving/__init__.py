"""Requests under load: continuous batching on the attention ranks of a setting, iterations priced by the simulator.

`ranks` is one rank's queue, batch and KV cache, `loop` the SimPy process that steps all ranks together, `prices` how
long an iteration takes, `measures` what requests then saw; `simulate` puts them together for a plan of a scenario.
"""
