"""Reads numbers with Prometheus' own parsers and prints them as JSON: metrics.py text|openmetrics < TEXT."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

read = read_openmetrics if sys.argv[1] == "openmetrics" else read_text
samples = []
for family in read(sys.stdin.read()):
    if not family.documentation or family.type == "unknown":
        sys.exit(f"{family.name} says nothing of itself")
    samples += [[sample.name, sample.labels, sample.value] for sample in family.samples]
print(json.dumps(samples))
