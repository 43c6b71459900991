"""Where experts live: problem, solvers, token split, checker."""
