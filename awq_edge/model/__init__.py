"""A model on disk and its number format: architectures, layouts, checkpoint, W4A16, rope."""
