"""Routing: filter, score, pick."""
