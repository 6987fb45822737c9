"""What rank 0 does when the training is over: test the best parameters, export them, and hand everything in."""

import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tidemill.telemetry import attributes
from tidemill.training.epochs import Metrics, Result
from tidemill.training.strategies.base import Flat
from tidemill.training.worker.evaluation import evaluate
from tidemill.training.worker.heartbeat import EVALUATING, EXPORTING
from tidemill.training.worker.session import Session
from tidemill.training.worker.spans import span

LOG = logging.getLogger(__name__)

MODEL = "model.onnx"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
SIGNATURE = "signature.json"
TEST = "test.npz"


class Delivery:
    """Makes the result of one job."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, best_epoch: int, flat: Flat) -> Result:
        """Test, export and upload the parameters of the best epoch.

        Raises:
            FailedPrecondition: the exported model does not compute what the trained one does.
        """
        self._session.network.load(flat)
        self._session.progress.phase = EVALUATING
        with span(self._session.tracer, attributes.SPAN_EVALUATE, {attributes.EPOCH: best_epoch}):
            test = evaluate(self._session.network, self._session.prepared.test, self._session.stop)
        self._session.progress.phase = EXPORTING
        with tempfile.TemporaryDirectory(dir=self._session.folder) as name:
            folder = Path(name)
            with span(self._session.tracer, attributes.SPAN_EXPORT):
                parity = self._session.export(
                    self._session.network, self._session.prepared.test.x, folder / MODEL, self._session.threads
                )
            self._session.stop.check()
            signature = self._session.signature(
                self._session.prepared.plan.model.dtype,
                self._session.prepared.plan.sample_shape,
                self._session.prepared.labels,
            )
            self._write(folder, test, parity, best_epoch, signature)
            with span(self._session.tracer, attributes.SPAN_UPLOAD):
                artifact = self._keep(folder, "model", (MODEL, WEIGHTS, METRICS, SIGNATURE))
                samples = self._keep(folder, "dataset", (TEST,))
        LOG.info("tested epoch %d: accuracy %.4f, loss %.4f", best_epoch, test.accuracy, test.loss)
        return Result(
            artifact=artifact,
            best_epoch=best_epoch,
            test=test,
            parity=parity,
            dataset_digest=self._session.prepared.digest,
            signature=signature,
            test_samples=samples,
        )

    def _write(self, folder: Path, test: Metrics, parity: float, best_epoch: int, signature: str) -> None:
        save_file(self._session.network.named(), folder / WEIGHTS)
        (folder / SIGNATURE).write_text(signature + "\n")
        facts = {
            "job": self._session.task.job,
            "best_epoch": best_epoch,
            "test": dataclasses.asdict(test),
            "parity": parity,
            "dataset": self._session.prepared.digest,
            "samples": {
                "train": len(self._session.prepared.train),
                "validation": len(self._session.prepared.validation),
                "test": len(self._session.prepared.test),
            },
        }
        (folder / METRICS).write_text(json.dumps(facts, sort_keys=True, indent=1) + "\n")
        x = self._session.prepared.test.x.astype(self._session.prepared.plan.model.dtype)
        np.savez_compressed(folder / TEST, x=x, y=self._session.prepared.test.y)

    def _keep(self, folder: Path, kind: str, names: tuple[str, ...]) -> str:
        labels = {"job": self._session.task.job}
        if kind == "model" and self._session.prepared.tokenizer:
            labels |= {
                "tokenizer": self._session.prepared.tokenizer,
                "tokens": str(self._session.prepared.plan.sample_shape[0]),
            }
        return self._session.artifacts.keep(
            kind, {name: folder / name for name in names}, labels, self._session.task.job
        )
