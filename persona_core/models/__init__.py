"""A model, its blocks, its chat template and its tokenizer."""
