"""Floor 5: the papers' experiments as grids of ordinary runs and an analysis that reads their folders."""
