"""TensorFlow's ParameterServerStrategy with a loop of its own: asynchronous, one server; option = steps a function."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from trainers import models
from trainers.job import Job, halt
from trainers.models import MODELS, Model

PACKAGES = ("tensorflow-cpu==2.21.0",)
SCHEDULERS = 4
"""Threads that start operations and wait for other processes: with one, the parts of a step wait for each other for
ever. Operations themselves have the threads that everybody has."""


def roles(job: Job) -> list[tuple[str, int]]:
    """The processes, in the order in which they are started; the coordinator hands out the steps."""
    return [("ps", 0), *(("task", rank) for rank in range(job.workers)), ("worker", 0)]


def known(job: Job) -> bool:
    """Whether its parameters must be those that one process with all workers' data comes to."""
    return job.workers == 1


def main(role: str, index: int, job: Job) -> None:
    """The server, a worker, or their coordinator."""
    os.environ.update(
        {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_NUM_INTRAOP_THREADS": str(job.threads),
            "TF_NUM_INTEROP_THREADS": str(SCHEDULERS),
            "TF_CONFIG": json.dumps(cluster(role, index, job)),
            "no_proxy": "*",
        }
    )
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    tf.config.threading.set_inter_op_parallelism_threads(SCHEDULERS)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if role == "worker":
        coordinate(tf, resolver, job)
        return
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=job.threads, inter_op_parallelism_threads=SCHEDULERS)
    server = tf.distribute.Server(
        resolver.cluster_spec(),
        job_name=resolver.task_type,
        task_index=resolver.task_id,
        protocol="grpc",
        config=config,
    )
    server.join()


def cluster(role: str, index: int, job: Job) -> dict[str, Any]:
    """Who is where, as TensorFlow wants it."""
    addresses = [f"127.0.0.1:{port}" for port in job.ports]
    return {
        "cluster": {"chief": addresses[:1], "ps": addresses[1:2], "worker": addresses[2 : 2 + job.workers]},
        "task": {"type": {"ps": "ps", "task": "worker", "worker": "chief"}[role], "index": index},
    }


def coordinate(tf: Any, resolver: Any, job: Job) -> None:
    """Hand out all steps; the time of a step is the time in which the workers together finish one each."""
    model, pack = MODELS[job.model], int(job.option)
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        variables = [tf.Variable(laid_out(value, (2, 3, 1, 0))) for value in models.first_values(model)]
    run = steps(tf, model, variables, pack)

    def some(first: int, count: int) -> list[float]:
        given = []
        for rank in range(job.workers):
            for i in range(first, first + count, pack):
                given.append(coordinator.schedule(run, args=(tf.constant(rank * count + i, tf.int32),)))
        coordinator.join()
        return sorted(value.fetch() for value in given)

    halt("ready")
    some(0, job.warm)
    given = [laid_out(value.numpy(), (3, 2, 0, 1)).ravel() for value in variables]
    np.save(Path(job.folder) / "values.npy", np.concatenate(given))
    halt("warm")
    began = time.perf_counter()
    ends = some(job.warm, job.steps)
    mean = (time.perf_counter() - began) / job.steps
    spans = zip(ends, ends[job.workers :], strict=False)
    # One function of many steps a worker leaves nothing between.
    times = [(late - early) / pack for early, late in spans] or [mean]
    halt("done", times=times, payload=payload(model) * job.steps * job.workers)
    # Servers have no end of their own: the benchmark ends them.
    os._exit(0)


def payload(model: Model) -> int:
    """Bytes that a step pulls and pushes: what it touches, and the indices of the rows."""
    if model.kind == "embedding":
        return model.batch * (2 * 4 * model.tensors[0][1] + 2 * 8)
    return 2 * model.bytes


def laid_out(value: Any, axes: tuple[int, ...]) -> Any:
    """A convolution's weights with their axes in another order: TensorFlow has the channels last."""
    return value.transpose(axes) if value.ndim == 4 else value


def steps(tf: Any, model: Model, variables: list[Any], pack: int) -> Any:
    """A function of some steps of plain SGD, the first of them step i; it gives a time at which it ran.

    TensorFlow may read the clock anywhere in a step; from one to the next it is a step all the same.
    """
    pool = models.batches(model, 0)
    images = model.kind == "resnet"
    xs = tf.constant([x.transpose(0, 2, 3, 1) if images else x for x, _ in pool])
    ys = tf.constant([y for _, y in pool])
    ops = operations(tf)

    def one(i: Any) -> None:
        x, y = tf.gather(xs, i % len(pool)), tf.gather(ys, i % len(pool))
        with tf.GradientTape() as tape:
            loss = models.loss(ops, model, variables, x, y)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if isinstance(gradient, tf.IndexedSlices):
                scaled = tf.IndexedSlices(model.rate * gradient.values, gradient.indices, gradient.dense_shape)
                variable.scatter_sub(scaled)
            else:
                with tf.device(variable.device):
                    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=model.rate, delta=gradient)

    @tf.function
    def run(i: Any) -> Any:
        if pack == 1:
            one(i)
        else:
            for step in tf.range(pack):
                one(i + step)
        return tf.timestamp()

    return run


def operations(tf: Any) -> Any:
    """What the models are made of."""

    class Ops:
        relu = staticmethod(tf.nn.relu)
        rows = staticmethod(tf.gather)

        @staticmethod
        def concatenate(values: list[Any]) -> Any:
            """One vector."""
            return tf.concat([tf.convert_to_tensor(value) for value in values], 0)

        @staticmethod
        def half_squares(x: Any) -> Any:
            """Half of the sum of squares."""
            return tf.nn.l2_loss(x)

        @staticmethod
        def dense(x: Any, weight: Any, bias: Any) -> Any:
            """A layer, its weights [out, in]."""
            return tf.nn.bias_add(tf.matmul(x, weight, transpose_b=True), bias)

        @staticmethod
        def cross_entropy(x: Any, y: Any) -> Any:
            """Mean over the batch."""
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x))

        @staticmethod
        def convolve(x: Any, weight: Any, stride: int) -> Any:
            """Convolution that keeps the size, but for the stride."""
            around = weight.shape[0] // 2
            return tf.nn.conv2d(x, weight, stride, [[0, 0], [around, around], [around, around], [0, 0]])

        @staticmethod
        def normalize(x: Any, scale: Any, shift: Any) -> Any:
            """Batch normalization."""
            return tf.compat.v1.nn.fused_batch_norm(x, scale, shift, epsilon=1e-5, is_training=True)[0]

        @staticmethod
        def mean_of_places(x: Any) -> Any:
            """Mean over height and width."""
            return tf.reduce_mean(x, (1, 2))

    return Ops
