#!/bin/sh
# Classify one image over HTTPS with nothing but curl: FIELDMARK_KEY=... classify-json.sh IMAGE HOST:PORT
# CURL_CA_BUNDLE names the authority's certificate where it is not one of the usual ones.
set -eu
printf '{"image": "%s", "top_k": 3}' "$(base64 -w0 "$1")" |
	curl -sS --fail-with-body -H "x-api-key: $FIELDMARK_KEY" -H "content-type: application/json" --data-binary @- \
		"https://$2/v1/classify"
