"""Floor 2: AdamW over flat buffers, parameter groups, learning-rate schedules."""
