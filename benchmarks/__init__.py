"""Measures the service against floors of the same run: each figure is a ratio, since machines differ and are shared."""
