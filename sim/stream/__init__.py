"""Weights that stream from the host's memory: passes of offline generation, their works, prices and composition.

`passes` says which tokens a pass holds, `works` what a schedule issues, `prices` how long that takes, `generation` puts
prefill and decode together; `ring` prices the copies of layers of experts in any other schedule's steps.
"""
