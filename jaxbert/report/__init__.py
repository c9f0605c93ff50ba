"""A run on one page: what it learnt, what came of it, and what it was made with."""
