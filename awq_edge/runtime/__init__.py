"""Running a bundle: sessions, the token loop, tokenizing, sampling, metrics, memory accounting."""
