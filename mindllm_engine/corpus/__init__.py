"""Floor 2: raw text to documents to token files; tokenizers; the sample corpus."""
