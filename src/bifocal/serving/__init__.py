"""One server and one page for every model: continuous batching behind an OpenAI-compatible API."""
