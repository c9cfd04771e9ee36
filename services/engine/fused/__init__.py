"""Decoder layers of the Llama family with everything between their matrix products fused into few calls."""
