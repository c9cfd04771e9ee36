"""The decode service: reserves memory, receives KV blocks and streams tokens."""
