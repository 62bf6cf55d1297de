"""Every number on these pages is made here: `python -m benchmarks NAME...`; `--help` lists them all."""
