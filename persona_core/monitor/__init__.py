"""Read every token of a conversation, live or after the fact."""
