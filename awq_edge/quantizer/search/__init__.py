"""The arithmetic of one linear: scales, clips, GPTQ, rounding, NF4."""
