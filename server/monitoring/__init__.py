"""What a process tells of itself: metrics for Prometheus, spans for OpenTelemetry."""
