"""Every number the README quotes is made here: `python -m benchmarks [NAME...]`, or `make bench`."""
