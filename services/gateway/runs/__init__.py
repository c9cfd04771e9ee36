"""Runs as durable jobs: docs/runs.md."""
