"""What hardware this is."""
