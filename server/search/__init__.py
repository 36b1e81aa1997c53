"""What is found by meaning: texts, their vectors, and how both are kept the same."""
