"""The HTTP service: APIs, text, routing and state."""
