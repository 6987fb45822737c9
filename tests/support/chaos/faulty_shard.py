"""A parameter shard, which can have a planted fault: its first argument, empty = none."""

import sys

from tidemill.parameters.__main__ import main

if __name__ == "__main__":
    del sys.argv[1]
    sys.exit(main())
