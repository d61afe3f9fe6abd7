"""Blocked, shuffled and chunked text: forgetting and in-context gain."""
