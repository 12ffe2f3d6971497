"""`awq-edge run`: one generation, and the report of its time and memory."""
