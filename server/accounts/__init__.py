"""People, sessions, service credentials and clients."""
