"""The HTTP APIs that the gateway speaks."""
