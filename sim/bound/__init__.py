"""Throughput bounds: what a scenario's hardware could do at best, what binds, and what more of it would bring."""
