"""Prompting strategies: programs that ask a model, and what to make of its answers."""
