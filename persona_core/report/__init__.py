"""All that a run of replies has to say, as tables and as one page: what `persona analyse` writes."""
