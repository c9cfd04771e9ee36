"""Stored objects as lines of JSON, out of a project and into one: docs/moving.md."""
