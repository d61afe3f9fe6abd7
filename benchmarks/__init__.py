"""One file for each question; the peers run in the same process or interleaved in the same run."""
