"""The paper's Tables 1 to 3: `python -m benchmarks study`, or `make study`."""
