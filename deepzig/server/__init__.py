"""The HTTP server: OpenAI's protocol over an LLM. Called by `cli.serve`; calls `engine` and `text`."""
