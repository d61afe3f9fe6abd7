"""Floor 5: what a trained model is worth: baselines, text generation, the report of a run."""
