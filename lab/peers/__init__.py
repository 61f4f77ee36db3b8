"""Ways to decode the same prompts, side by side: plain, static cache and compile, lookup, assisted, heads."""
