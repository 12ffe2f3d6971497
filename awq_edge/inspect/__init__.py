"""`awq-edge inspect`: the contents of a folder, from its manifest, config.json and headers."""
