"""What each source teaches: learning curves, transfer between sources, and a mixture."""
