"""`python -m benchmarks`: see `benchmarks.run`."""

import os
import sys

from benchmarks.run import main

code = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
