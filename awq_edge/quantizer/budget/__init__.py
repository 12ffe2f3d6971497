"""Number formats by linear, chosen so that a model takes no more than given bytes."""
