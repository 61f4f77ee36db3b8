"""How much faster drafted decoding is than plain, from sizes, a machine and acceptance; nothing is run."""
