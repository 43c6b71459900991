"""Routing and timings recorded from MoE models that run in torch; the only package that imports it."""
