"""What is done to a model to learn about it: a fine-tune, an intervention, a baseline."""
