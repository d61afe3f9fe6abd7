"""MindLLM engine: pre-train 1-3 B parameter bilingual language models. docs/architecture.md has the plan of the house."""

__version__ = "0.1.0"
