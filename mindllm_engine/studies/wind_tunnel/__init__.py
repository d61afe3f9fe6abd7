"""MiniCPM's rules of width: coordinate check, best learning rates, hyperparameter search."""
