"""`python -m lab`, from the root of the repository."""

from lab.cli import main

main()
