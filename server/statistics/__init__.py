"""Measurements: raw events in, exact figures and live streams out."""
