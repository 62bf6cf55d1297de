"""Classify one image through fieldmark.v1: python classify.py IMAGE [HOST:PORT]"""

import sys
from pathlib import Path

from bundle.errors import RequestRefused
from serving.gateway.client import FieldmarkClient

image = Path(sys.argv[1]).read_bytes()
with FieldmarkClient(sys.argv[2] if len(sys.argv) > 2 else "localhost:8010") as client:
    try:
        answer = client.classify(image, top_k=3, explain=True)
    except RequestRefused as refused:
        sys.exit(f"{refused.reason or 'no answer'}: {refused}")
for prediction in answer.predictions:
    sys.stdout.write(f"{prediction.label}: {prediction.probability:.3f}\n")
evidence = answer.adversarial
sys.stdout.write(f"p-value {evidence.p_value:.4f}, {'FLAGGED' if evidence.flagged else 'not flagged'}\n")
sys.stdout.write(f"attention map: {len(answer.explanation.attention_png)} bytes of PNG\n")
