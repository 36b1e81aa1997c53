"""Backups of all stores: taken, listed, verified, restored, and rehearsed."""
