"""Everything that knows a database. Knows neither gRPC nor the protos."""
