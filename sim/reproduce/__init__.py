"""Published results against predictions: cases of a paper's file are simulated, its claims evaluated."""
