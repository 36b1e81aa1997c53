"""Budgets over time: what is spent, what should be, how it goes on, and when people are to be told."""
