"""Asks a gateway over TLS with Python's own client, and prints what it saw as JSON: tls.py URL TRUSTED_CERTIFICATE TOKEN."""

import http.client
import json
import ssl
import sys
import urllib.parse

url, trusted, token = sys.argv[1:]
place = urllib.parse.urlsplit(url)
context = ssl.create_default_context(cafile=trusted)
# A certificate that vouches for itself has not all that newer versions want of an authority's.
context.verify_flags &= ~ssl.VERIFY_X509_STRICT
try:
    connection = http.client.HTTPSConnection(place.hostname, place.port, context=context, timeout=20)
    connection.connect()
    subject = dict(pair for entry in connection.sock.getpeercert()["subject"] for pair in entry)
    version = connection.sock.version()
    connection.request("GET", "/health/live", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    seen = {
        "status": answer.status,
        "version": version,
        "subject": subject["commonName"],
        "hsts": answer.getheader("strict-transport-security"),
    }
except (OSError, http.client.HTTPException) as error:
    seen = {"error": str(error)}
print(json.dumps(seen))
