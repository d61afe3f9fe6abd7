"""Floor 5: supervised, LoRA and preference tuning, and the choice of data for it; the loop is training's."""
