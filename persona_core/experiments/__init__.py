"""Experiments on a model: fine-tuning, interventions, baselines."""
