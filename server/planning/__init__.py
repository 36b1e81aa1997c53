"""Projects, and later media plans, forecasts and reports."""
