"""MindLLM engine: pre-train 1-3 B parameter bilingual language models. The plan is docs/architecture.md."""

__version__ = "0.1.0"
