"""Floor 3: process groups and data parallelism."""
