"""Function tools: how models are told of them, and how they write their calls. A format is a file."""
