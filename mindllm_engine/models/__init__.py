"""Floor 2: networks as plain nn.Modules; they know nothing of distribution, data or training."""
