"""Campaigns on advertising platforms."""
