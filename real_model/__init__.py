"""Vectors, contaminated model and runs of a real model: SmolLM2-135M-Instruct, from labelled texts that it reads."""
