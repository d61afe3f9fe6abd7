"""Floor 2: token files, mixture plans, the loader."""
