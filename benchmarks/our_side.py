"""This project's side of benchmarks/compare.py: ``python our_side.py JOB.json`` repeats the piece
of work ``job["task"]``, see
:mod:`serving`; the task 'files' writes the weights and arrays that both sides read. Whole command
lines need no side of their own."""
from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import Any, Callable, Dict, List

import numpy as np
from serving import batch_taker, serve, timed, timed_batches

from cian.environment import prepare, usable_cores

Job = Dict[str, Any]
CLASSES = 21


def files(job: Job) -> None:
    """Weights, a batch, logits for the CRF, and packed records.

    Weights are random under which a network behaves as a trained one: under plain ones the affinity
    picks single pixels, and the denormal numbers of all others make its products up to a hundred
    times as slow, on both sides. The classifier sees background in half of the pixels, for the
    original's completion loss is not a number where no pixel is predicted as a class of its image.
    """
    import cv2
    import mxnet as mx

    from cian.data.preparation import prepare as pack
    from cian.data.tree import DatasetTree
    from cian.symbols import build_model, save_params
    from cian.tools.engine.fidelity.inputs import condition, random_images

    network = build_model(job["model"], num_classes=CLASSES)
    images = random_images(2, job["crop_px"], seed=0)
    condition(network, images, seed=0)
    prefer_background(network, mx.nd.array(images))
    save_params(network, job["weights"])
    random = np.random.RandomState(0)
    batch, label_px = job["batch_size"], (job["crop_px"] - 1) // 8 + 1
    np.savez(job["batch"], data=random_images(batch, job["crop_px"], seed=1),
             label=random.choice([0, 0, 1, 255], (batch, label_px, label_px)).astype(np.float32))
    side = (job["size_px"] - 1) // 8 + 1
    fields = random.normal(0, 2, (CLASSES, 7, 7)).astype(np.float32)
    np.save(job["logits"],
            np.stack([cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC) for field in fields]))
    pack(DatasetTree(image_root=job["image_root"], annotation_root=job["annotation_root"],
                     label_root=job["label_root"]), job["list"], job["records"])


def prefer_background(network: Any, images: Any) -> None:
    """Change the classifier so that it sees background in half of the images' pixels: along the
    mean feature, in the kernel's middle.
    """
    mean = network.backbone(images).mean(axis=(0, 2, 3)).asnumpy()
    logits = network(images)[0].asnumpy()
    behind = np.median(logits[:, 1:].max(axis=1) - logits[:, 0])
    weight = network.head.weight.data().asnumpy()
    weight[0, :, weight.shape[2] // 2, weight.shape[3] // 2] += behind * mean / (mean ** 2).sum()
    network.head.weight.set_data(weight)


def loading(job: Job) -> Callable[[], float]:
    """Batches of PairIter with a worker a core, as tools/train.py makes them."""
    from cian.data.iterators import PairIter
    from cian.data.records import RecordSet

    iterator = PairIter(RecordSet.open(job["records"], "all"), RecordSet.open(job["records"], "all_seeds"),
                        batch_size=job["batch_size"], crop_px=job["crop_px"], workers=usable_cores())
    return timed_batches(batch_taker(iterator), job["batches"], job["ahead"])


def step(job: Job) -> Callable[[], float]:
    """A step of the trainer on a batch that is there."""
    import mxnet as mx

    from cian.symbols import build_model, configure_training, initialize, load_params
    from cian.symbols.losses import CIANLoss
    from cian.tools.engine.config import TrainConfig
    from cian.tools.engine.training.step import Trainer

    network = build_model(job["model"], num_classes=CLASSES)
    initialize(network, 0)
    load_params(network, job["weights"])
    configure_training(network)
    trainer = Trainer(network, CIANLoss(CLASSES), [mx.cpu()], TrainConfig(lr=job["lr"]))
    with np.load(job["batch"]) as arrays:
        images, labels = mx.nd.array(arrays["data"]), mx.nd.array(arrays["label"])
    parts = [mx.io.DataBatch(data=[images], label=[labels, mx.nd.ones((len(images), CLASSES))])]

    def work() -> None:
        trainer.step(parts, job["lr"], 0)
        mx.nd.waitall()

    return timed(work)


def random_step(job: Job) -> Callable[[], float]:
    """The step that profile_step.py takes apart, on random images, with any model and group size."""
    from profile_step import make_step

    return timed(make_step(Namespace(**job))[1])


def forward(job: Job) -> Callable[[], float]:
    """The test-time network on one crop, as prediction runs it."""
    from cian.data.classes import load_classes
    from cian.tools.engine.config import PredictConfig
    from cian.tools.engine.prediction.predictor import load_predictors

    settings = PredictConfig(fit="native", scales=(1.0,), add_max=False, mirror=False)
    (predictor,), _ = load_predictors(job["weights"], settings, [None], model=job["model"],
                                      classes=load_classes("voc"))
    with np.load(job["batch"]) as arrays:
        images = list(arrays["data"][:1].transpose(0, 2, 3, 1).astype(np.uint8))

    def work() -> np.ndarray:
        return predictor.start(images).coarse.asnumpy()

    np.save(job["out"], work())
    return timed(work)


def prediction(job: Job) -> Callable[[], float]:
    """Prediction as tools/predict.py makes it, from image files to label maps with CRF; the
    networks are loaded beforehand.
    """
    from cian.data.classes import load_classes
    from cian.data.lists import read_list
    from cian.tools.engine.config import PredictConfig
    from cian.tools.engine.prediction.processes import NetworkProcesses, choose_processes

    opened = {"path": job["weights"], "settings": PredictConfig(size_px=job["size_px"]),
              "model": job["model"], "classes": load_classes("voc")}
    beside = NetworkProcesses(choose_processes(0, ["cpu:0"], len(read_list(job["list"]))), opened)
    import mxnet as mx

    from cian.tools.engine.prediction.predictor import load_predictors

    predictors, model = load_predictors(devices=[mx.cpu()], **opened)
    return _predicting(job, [*predictors, *beside.predictors(predictors[0], model)])


def crf(job: Job) -> Callable[[], float]:
    """The same with stored logits in place of a network's."""
    import mxnet as mx

    from cian.tools.engine.config import PredictConfig
    from cian.tools.engine.prediction.predictor import Predictor

    coarse = np.load(job["logits"])[None]
    both = mx.nd.array(np.concatenate([coarse, coarse[..., ::-1]]))
    settings = PredictConfig(size_px=job["size_px"], scales=(1.0,), add_max=False)
    return _predicting(
        job, [Predictor(lambda _: [both], settings, class_names=[str(number) for number in range(CLASSES)])])


def _predicting(job: Job, predictors: List[Any]) -> Callable[[], float]:
    from cian.data.lists import read_list
    from cian.tools.engine.images import Sample
    from cian.tools.engine.prediction.crf import crf_preset
    from cian.tools.engine.prediction.inference import predict_samples
    from cian.tools.engine.prediction.outputs import Outputs

    samples = [Sample(name, os.path.join(job["image_root"], f"{name}.jpg"))
               for name in read_list(job["list"])]
    rounds = iter(range(10 ** 6))

    def work() -> None:
        out = os.path.join(job["out"], str(next(rounds)))  # a new folder: what is done is not predicted again
        predict_samples(predictors, samples,
                        Outputs(out, {}, predictors[0].class_names, crf=crf_preset("test")))

    return timed(work)


REPEATED: Dict[str, Callable[[Job], Callable[[], float]]] = {
    "loading": loading, "step": step, "random_step": random_step, "forward": forward,
    "prediction": prediction, "crf": crf}


def main(path: str) -> int:
    prepare()
    with open(path, encoding="utf-8") as stream:
        job = json.load(stream)
    if job["task"] == "files":
        files(job)
    else:
        serve(job["pipe"], REPEATED[job["task"]](job))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
