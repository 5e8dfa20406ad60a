"""The demo world: a small language with a known truth for every token, and the model trained on it.

The library does not know it; real models run through the same code.
"""
