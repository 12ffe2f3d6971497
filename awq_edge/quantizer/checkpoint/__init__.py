"""The checkpoint that is made: finished blocks on disk, shards, config.json."""
