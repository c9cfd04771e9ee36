"""Faults on purpose, a test instrument: the list of protocol steps, and plans that say what happens at which."""
