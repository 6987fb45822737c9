"""Holds a server's answer against what is right, and prints its size: `check.py FOLDER ADDRESS MODEL`."""

import sys
import time
from pathlib import Path

PATIENCE = 90


def main(folder, address, model):
    """Print the size in bytes; fails when the answer is wrong, or none comes in time."""
    import grpc
    import numpy as np

    sys.path.insert(0, str(folder))
    import oip_pb2
    import oip_pb2_grpc

    request = oip_pb2.ModelInferRequest.FromString((folder / f"{model}.req").read_bytes()[5:])
    limit = [("grpc.max_receive_message_length", 64 << 20)]
    end = time.monotonic() + PATIENCE
    with grpc.insecure_channel(address, options=limit) as channel:
        stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)
        while True:
            try:
                answer = stub.ModelInfer(request, timeout=10, wait_for_ready=True)
                break
            except grpc.RpcError:  # a server may listen before it has its models
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
    raw = answer.raw_output_contents
    found = np.frombuffer(raw[0], np.float32) if raw else np.array(answer.outputs[0].contents.fp32_contents, np.float32)
    np.testing.assert_allclose(found, np.load(folder / f"{model}.npy").ravel(), rtol=1e-4, atol=1e-5)
    print(answer.ByteSize())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
