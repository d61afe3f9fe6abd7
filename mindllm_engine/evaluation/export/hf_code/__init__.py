"""The two files that travel with an exported MindLLM. They import torch and transformers only, never this package."""
