"""What the gateway and Envoy cost: `python -m benchmarks gateway`."""
