"""The HTTP server: APIs of OpenAI and Anthropic over one model."""
