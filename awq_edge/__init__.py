"""AWQ for edge devices."""
