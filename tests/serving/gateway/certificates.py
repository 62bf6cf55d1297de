"""Certificates for this machine, made on the spot."""

from benchmarks.certificates import make_certificate as make_certificate
