"""The arena (arXiv 2310.15777, section 6.1.2): answers of several models, ranked by a judge, as ratings."""
