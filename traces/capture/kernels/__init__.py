"""Kernels of a device, timed one by one: what a card of it is fitted on."""
