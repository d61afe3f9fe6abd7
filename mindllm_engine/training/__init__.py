"""Floor 4: the configuration of a run, the loop, checkpoints, metrics."""
