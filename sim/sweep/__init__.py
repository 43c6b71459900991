"""Many points of one scenario: `points` makes them from axes, `store` keeps what is done under its content, `workers`
simulates what is missing, `findings` says what the points show, `plot` draws it."""
