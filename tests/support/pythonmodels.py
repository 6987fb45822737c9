"""Models in Python as their users write them."""

from textwrap import dedent

ADD_SUB = dedent("""
    import json

    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            self.model_config = model_config = json.loads(args["model_config"])
            output0 = pb_utils.get_output_config_by_name(model_config, "OUTPUT0")
            output1 = pb_utils.get_output_config_by_name(model_config, "OUTPUT1")
            self.output0_dtype = pb_utils.triton_string_to_numpy(output0["data_type"])
            self.output1_dtype = pb_utils.triton_string_to_numpy(output1["data_type"])

        def execute(self, requests):
            responses = []
            for request in requests:
                in_0 = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
                in_1 = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
                out_0, out_1 = in_0 + in_1, in_0 - in_1
                responses.append(pb_utils.InferenceResponse(output_tensors=[
                    pb_utils.Tensor("OUTPUT0", out_0.astype(self.output0_dtype)),
                    pb_utils.Tensor("OUTPUT1", out_1.astype(self.output1_dtype)),
                ]))
            return responses

        def finalize(self):
            print("cleaning up")
""")

BLS = dedent("""
    import asyncio

    import triton_python_backend_utils as pb_utils


    def call(name, request):
        return pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=["OUTPUT0", "OUTPUT1"],
            inputs=[pb_utils.get_input_tensor_by_name(request, n) for n in ("INPUT0", "INPUT1")],
            request_id=request.request_id(),
            trace=request.trace(),
        )


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                name = pb_utils.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()[0].decode()
                response = call(name, request).exec()
                if response.has_error():
                    raise pb_utils.TritonModelException(response.error().message())
                responses.append(pb_utils.InferenceResponse(output_tensors=[
                    pb_utils.get_output_tensor_by_name(response, "OUTPUT0"),
                    pb_utils.get_output_tensor_by_name(response, "OUTPUT1"),
                ]))
            return responses
""")

BLS_ASYNC = BLS.replace("def execute", "async def execute").replace(
    "response = call(name, request).exec()",
    "response, _ = await asyncio.gather(*(call(name, request).async_exec() for _ in range(2)))",
)

REPEAT = dedent("""
    import json
    import threading

    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            config = json.loads(args["model_config"])
            if not pb_utils.using_decoupled_model_transaction_policy(config):
                raise pb_utils.TritonModelException("must be decoupled")
            self.threads = []

        def execute(self, requests):
            for request in requests:
                sender = request.get_response_sender()
                values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
                thread = threading.Thread(target=self.respond, args=(sender, values), daemon=True)
                self.threads.append(thread)
                thread.start()
            return None

        def respond(self, sender, values):
            for value in values.ravel():
                out = pb_utils.Tensor("OUT", np.array([value], np.int32))
                sender.send(pb_utils.InferenceResponse(output_tensors=[out]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        def finalize(self):
            for thread in self.threads:
                thread.join()
""")

BLS_DECOUPLED = dedent("""
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                inner = pb_utils.InferenceRequest(
                    model_name="repeat",
                    requested_output_names=["OUT"],
                    inputs=[pb_utils.get_input_tensor_by_name(request, "IN")],
                )
                total = 0
                for response in inner.exec(decoupled=True):
                    if response.has_error():
                        raise pb_utils.TritonModelException(response.error().message())
                    tensor = pb_utils.get_output_tensor_by_name(response, "OUT")
                    if tensor is not None:
                        total += int(tensor.as_numpy()[0])
                out = pb_utils.Tensor("SUM", np.array([total], np.int32))
                responses.append(pb_utils.InferenceResponse([out]))
            return responses
""")

STRINGS = dedent("""
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                tensor = pb_utils.get_input_tensor_by_name(request, "TEXT")
                assert tensor.as_numpy().dtype == np.object_
                upper = [text.decode("utf-8").upper() for text in tensor.as_numpy().ravel()]
                out = np.array(upper, dtype=np.object_).reshape(tensor.shape())
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("UPPER", out)]))
            return responses
""")

ERRORS = dedent("""
    import ctypes
    import os
    import sys
    import time

    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
                what = int(x.ravel()[0])
                if what == -1:
                    error = pb_utils.TritonError("no negative values", pb_utils.TritonError.INVALID_ARG)
                    responses.append(pb_utils.InferenceResponse(output_tensors=[], error=error))
                    continue
                if what == -2:
                    raise ValueError("cannot do that")
                if what == -3:
                    ctypes.string_at(0)
                if what == -4:
                    return []
                if what == -5:
                    while not request.is_cancelled():
                        time.sleep(0.01)
                if what == -6:
                    out = pb_utils.Tensor("z", x)
                    responses.append(pb_utils.InferenceResponse([out]))
                    continue
                if what == -7:
                    while True:
                        time.sleep(60)
                x *= 2
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)], parameters={"pid": os.getpid()}))
            return responses
""")

COUNTER = dedent("""
    import os

    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            self.counts = {}
            self.name = args["model_instance_name"]

        def execute(self, requests):
            responses = []
            for request in requests:
                key = request.correlation_id()
                if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                    self.counts[key] = 0
                self.counts[key] += 1
                out = pb_utils.Tensor("y", np.array([[self.counts[key]]], np.int32))
                if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                    del self.counts[key]
                responses.append(pb_utils.InferenceResponse([out], parameters={"instance": self.name}))
            return responses
""")

DOUBLE = dedent("""
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        @staticmethod
        def auto_complete_config(auto_complete_model_config):
            spec = {"data_type": "TYPE_FP32", "dims": [2]}
            auto_complete_model_config.set_max_batch_size(8)
            auto_complete_model_config.add_input({"name": "x", **spec})
            auto_complete_model_config.add_output({"name": "y", **spec})
            auto_complete_model_config.set_dynamic_batching()
            return auto_complete_model_config

        def execute(self, requests):
            doubled = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() * 2 for request in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array)]) for array in doubled]
""").rstrip()

METRICS = dedent("""
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            family = pb_utils.MetricFamily(
                name="requests_seen", description="Requests.", kind=pb_utils.MetricFamily.COUNTER
            )
            self.seen = family.Metric(labels={"model": args["model_name"]})
            sizes = pb_utils.MetricFamily(
                name="sizes", description="Sizes.", kind=pb_utils.MetricFamily.HISTOGRAM
            )
            self.sizes = sizes.Metric(labels={}, buckets=[1.0, 10.0])
            pb_utils.Logger.log_info("metrics are defined")

        def execute(self, requests):
            responses = []
            for request in requests:
                x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
                self.seen.increment(1)
                self.sizes.observe(x.size)
                out = pb_utils.Tensor("y", np.full((1,), self.seen.value(), np.float32))
                responses.append(pb_utils.InferenceResponse([out]))
            return responses
""")
