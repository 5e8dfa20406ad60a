"""Engines other than transformers: what `load_model(..., engine="vllm")` gives a model to run on."""
