"""How long one thing takes: formulas, devices, topology. No clock, no queue."""
