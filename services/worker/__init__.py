"""What a prefill and a decode process have in common."""
