"""Whether a model fits a device, from config.json alone; before a weight is downloaded."""
