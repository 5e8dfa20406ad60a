"""Files, working folders, checks, the Hub, and the OpenAI client."""
