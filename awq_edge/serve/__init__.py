"""The OpenAI-compatible server: one model, one worker thread, a fair and bounded queue."""
