"""The inference service with the fault that the environment names."""

import sys

from tests.support.chaos.faulty import plant

if __name__ == "__main__":
    plant("inference")
    from tidemill.inference.__main__ import main

    sys.exit(main())
