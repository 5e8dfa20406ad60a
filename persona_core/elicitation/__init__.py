"""From a trait definition to stored replies."""
