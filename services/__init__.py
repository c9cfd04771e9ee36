"""Tandem: large language models served from separate prefill and decode pools."""
