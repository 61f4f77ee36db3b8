"""The laboratory makes the tables and pictures of docs/results. The package knows nothing of it."""
