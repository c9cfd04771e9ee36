"""Attention over the paged KV cache: one small protocol, one implementation per file."""
