"""Warm-up, stable, decay against cosine schedules; instructions in the decay."""
