"""Our detector of adversarial images beside those of others: `python -m benchmarks rivals`."""
