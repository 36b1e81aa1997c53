"""Record of changes."""
