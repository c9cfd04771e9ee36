"""Runs a model over a paged KV cache; knows no network."""
