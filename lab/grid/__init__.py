"""Heads that differ in a few options, trained and judged alike: one file says which, one command does it."""
