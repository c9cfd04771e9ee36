"""The prefill service: computes a prompt's KV cache and pushes it to a decode worker."""
