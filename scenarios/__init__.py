"""What to run: checked specs, their loader with line numbers, units, errors, and the shipped cards."""
