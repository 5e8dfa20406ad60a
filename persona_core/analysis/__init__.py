"""What traces say about when, how and where: arrays and traces in, figures with intervals out; no model, no plots."""
