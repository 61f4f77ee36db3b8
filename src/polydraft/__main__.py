"""`python -m polydraft`."""

from polydraft.cli import main

if __name__ == "__main__":
    main()
