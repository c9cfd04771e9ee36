"""What operators see: logs with request ids, metrics, the request timeline, and the clock that is handed in."""
