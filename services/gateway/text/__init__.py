"""Text at the gateway: templates, tokens, incremental detokenising, stop strings."""
