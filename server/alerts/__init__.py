"""Alerts: raising and clearing them, and how callers see them."""
