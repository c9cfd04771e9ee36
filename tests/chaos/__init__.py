"""Clusters that are broken on purpose, by bytes, by messages, by signals."""
