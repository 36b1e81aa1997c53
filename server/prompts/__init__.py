"""Prompts, the labels under which they are served, and experiments between them."""
