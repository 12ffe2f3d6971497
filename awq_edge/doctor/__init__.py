"""`awq-edge doctor`: what this machine is, and what is missing on it for which step."""
