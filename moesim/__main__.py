"""`python -m moesim`: the same as the command `moesim`."""

from moesim.cli import main

if __name__ == "__main__":
    main()
