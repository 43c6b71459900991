"""Time: stream programs, executors, metrics and reports."""
