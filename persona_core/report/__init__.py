"""All analyses of a results folder, as tables and as one page: what `persona analyse` writes."""
