"""Grammars: which tokens may come next, so that an output is what its request demands."""
