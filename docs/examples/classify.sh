#!/bin/sh
# Classify one image through fieldmark.v1 without a program: classify.sh IMAGE [HOST:PORT]
# `buf curl` is in .venv/bin. grpcurl takes the same: grpcurl -plaintext -d @ HOST:PORT fieldmark.v1.Fieldmark/Classify
set -eu
printf '{"image": "%s", "top_k": 3}' "$(base64 -w0 "$1")" |
	buf curl --protocol grpc --http2-prior-knowledge --reflect -d @- \
		"http://${2:-localhost:8010}/fieldmark.v1.Fieldmark/Classify"
