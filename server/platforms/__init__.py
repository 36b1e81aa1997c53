"""Advertising platforms and counters behind one interface."""
