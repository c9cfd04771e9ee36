"""The gRPC wire: generated stubs, channels, servers, and the table between errors and statuses."""
