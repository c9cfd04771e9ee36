"""Moves KV blocks between processes; knows layouts, not models."""
