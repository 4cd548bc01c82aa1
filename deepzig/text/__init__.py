"""Text: token ids from text and back, chat templates, stop strings. Called by `engine`, `cli`, `server` and
`llm_plugin`; calls nothing of deepzig but errors and `small_files`."""
