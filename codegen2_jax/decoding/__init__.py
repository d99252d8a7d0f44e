"""Greedy and beam search over an explicit cache."""
