"""What was tried to bring the service down, and what happened: `python -m benchmarks reliability`."""
