"""Publishes durably, one message after the other, until a file exists. Whatever is not accepted ends it.

    durable_steady.py PATH_OF_MODULE OPERATOR.toml FILE

Prints a line with the first message, and how many were accepted at the end.
"""

import importlib.util
import os
import sys

spec = importlib.util.spec_from_file_location("interlock", sys.argv[1])
interlock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interlock)

with interlock.connect(sys.argv[2]) as operator:
    accepted = 0
    while not os.path.exists(sys.argv[3]):
        operator.publish_durable("orders/python", str(accepted), timeout=30)
        accepted += 1
        if accepted == 1:
            print("begun", flush=True)
print(accepted, flush=True)
