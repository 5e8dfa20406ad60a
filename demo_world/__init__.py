"""The demo world: a small language with a known truth for every token, and the model that was trained on it.

Nothing outside this package knows of it; real models run through the same library.
"""
