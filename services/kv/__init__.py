"""What all sides must agree on about KV blocks, without torch or network."""
