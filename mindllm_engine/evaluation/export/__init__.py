"""Runs as folders that Transformers opens (`export_run`), and such folders as runs (`import_checkpoint`)."""
