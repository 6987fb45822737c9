"""tritonclient over gRPC, with threads and with asyncio."""

from tests.support.clientprograms import triton_aio, triton_control, triton_infer, triton_memory, triton_stream
from tests.support.clientprograms.checks import Checks

if __name__ == "__main__":
    parts = (triton_infer, triton_stream, triton_control, triton_memory, triton_aio)
    Checks().include(*(part.checks for part in parts)).main()
