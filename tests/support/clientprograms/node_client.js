// A client in Node with gRPC's own packages: `node node_client.js host:port protos`; a line of JSON for each check.
const assert = require("node:assert/strict");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos] = process.argv.slice(2);
const definition = loader.loadSync("tidemill/api/compat/inference/service.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  defaults: true,
  oneofs: true,
});
const { inference } = grpc.loadPackageDefinition(definition);
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

const call = (method, request, options = {}) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 20000, ...options }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    ),
  );
const bytes = (array) => Buffer.from(array.buffer);
const numbers = (buffer) => Array.from(new Int32Array(new Uint8Array(buffer).buffer));
const ramp = Int32Array.from({ length: 16 }, (_, index) => index);
const ones = new Int32Array(16).fill(1);
const tensors = ["INPUT0", "INPUT1"].map((name) => ({ name, datatype: "INT32", shape: [1, 16] }));
const simple = (id) => ({ model_name: "simple", id, inputs: tensors, raw_input_contents: [bytes(ramp), bytes(ones)] });

function summed(answer, id) {
  assert.deepEqual([answer.id, answer.model_name, answer.model_version], [id, "simple", "1"]);
  assert.deepEqual(answer.outputs.map((output) => output.name), ["OUTPUT0", "OUTPUT1"]);
  assert.deepEqual(numbers(answer.raw_output_contents[0]), Array.from(ramp, (value) => value + 1));
  assert.deepEqual(numbers(answer.raw_output_contents[1]), Array.from(ramp, (value) => value - 1));
}

function converse(requests, count) {
  return new Promise((resolve, reject) => {
    const stream = client.ModelStreamInfer({ deadline: Date.now() + 20000 });
    const found = [];
    stream.on("data", (answer) => {
      found.push(answer);
      if (found.length === count) stream.end();
    });
    stream.on("error", reject);
    stream.on("end", () => resolve(found));
    for (const request of requests) stream.write(request);
  });
}

const checks = {
  async health() {
    assert.equal((await call("ServerLive", {})).live, true);
    assert.equal((await call("ServerReady", {})).ready, true);
    assert.equal((await call("ModelReady", { name: "simple" })).ready, true);
    assert.equal((await call("ModelReady", { name: "nope" })).ready, false);
  },
  async metadata() {
    assert.equal((await call("ServerMetadata", {})).name, "triton");
    const about = await call("ModelMetadata", { name: "simple" });
    assert.deepEqual(about.inputs[0], { name: "INPUT0", datatype: "INT32", shape: [-1, 16] });
    assert.equal((await call("ModelConfig", { name: "simple" })).config.max_batch_size, 8);
  },
  async raw_contents() {
    summed(await call("ModelInfer", simple("n1")), "n1");
    const answers = await Promise.all(Array.from({ length: 40 }, (_, index) => call("ModelInfer", simple(`${index}`))));
    answers.forEach((answer, index) => summed(answer, `${index}`));
  },
  async typed_contents() {
    const inputs = [ramp, ones].map((array, index) => ({
      ...tensors[index],
      contents: { int_contents: Array.from(array) },
    }));
    summed(await call("ModelInfer", { model_name: "simple", id: "t", inputs }), "t");
  },
  async failures() {
    await assert.rejects(call("ModelInfer", { ...simple("x"), model_name: "nope" }), {
      code: grpc.status.NOT_FOUND,
      details: "Request for unknown model: 'nope' is not found",
    });
    const late = { model_name: "patience", inputs: [{ name: "SECONDS", datatype: "FP32", shape: [1] }] };
    late.raw_input_contents = [bytes(Float32Array.of(5))];
    await assert.rejects(call("ModelInfer", late, { deadline: Date.now() + 200 }), {
      code: grpc.status.DEADLINE_EXCEEDED,
    });
  },
  async stream() {
    const requests = [simple("a"), { ...simple("b"), model_name: "nope" }, simple("c")];
    const found = await converse(requests, 3);
    assert.deepEqual(found.map((answer) => answer.error_message).filter(Boolean), [
      "Request for unknown model: 'nope' is not found",
    ]);
    const good = found.filter((answer) => !answer.error_message).map((answer) => answer.infer_response);
    assert.deepEqual(good.map((answer) => answer.id).sort(), ["a", "c"]);
    good.forEach((answer) => summed(answer, answer.id));
  },
  async sequence() {
    const requests = [1, 2, 3].map((value) => ({
      model_name: "simple_sequence",
      parameters: {
        sequence_id: { string_param: "node" },
        sequence_start: { bool_param: value === 1 },
        sequence_end: { bool_param: value === 3 },
      },
      inputs: [{ name: "INPUT", datatype: "INT32", shape: [1, 1] }],
      raw_input_contents: [bytes(Int32Array.of(value))],
    }));
    const found = await converse(requests, 3);
    assert.deepEqual(found.map((answer) => numbers(answer.infer_response.raw_output_contents[0])[0]), [1, 3, 6]);
  },
  async decoupled() {
    const inputs = [
      { name: "IN", datatype: "INT32", shape: [3] },
      { name: "DELAY", datatype: "UINT32", shape: [3] },
      { name: "WAIT", datatype: "UINT32", shape: [1] },
    ];
    const raw = [Int32Array.of(4, 2, 0), new Uint32Array(3), new Uint32Array(1)].map(bytes);
    const found = await converse([{ model_name: "repeat_int32", inputs, raw_input_contents: raw }], 3);
    assert.deepEqual(found.map((answer) => numbers(answer.infer_response.raw_output_contents[0])[0]), [4, 2, 0]);
  },
};

async function main() {
  for (const [check, run] of Object.entries(checks)) {
    const begun = Date.now();
    let error = "";
    try {
      await run();
    } catch (reason) {
      error = String(reason.stack);
    }
    console.log(JSON.stringify({ check, error, seconds: (Date.now() - begun) / 1000 }));
  }
  client.close();
}

main();
