"""Embeddings: which workers make them, and texts as the sequences that they take."""
