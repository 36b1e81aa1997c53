"""A stand-in for the advertising platforms: a real HTTP server that keeps state. It knows nothing of the connectors."""
