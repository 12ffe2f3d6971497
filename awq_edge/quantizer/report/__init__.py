"""quantization_report.json and its page."""
