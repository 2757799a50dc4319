"""How each kind of file is read, as its user's command reads it; values that can be compared come back."""
from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import numpy as np
from faulting.world import SEEDS, settings


class Kind(NamedTuple):
    """A kind of file: where it is in the world, how it is damaged, and how it is read."""

    path: str
    mutator: str
    read: Callable[[Path, Path], Any]
    share: int = 1  # of the mutations


def digest(value: Any) -> str:
    """A digest of nested plain values and arrays."""
    found = hashlib.sha256()

    def add(node: Any) -> None:
        if isinstance(node, dict):
            for key in sorted(node, key=str):
                found.update(repr(key).encode())
                add(node[key])
        elif isinstance(node, (list, tuple)):
            found.update(b"[%d" % len(node))
            for entry in node:
                add(entry)
        elif isinstance(node, np.ndarray):
            found.update(f"{node.dtype}{node.shape}".encode() + np.ascontiguousarray(node).tobytes())
        else:
            found.update(repr(node).encode())
    add(value)
    return found.hexdigest()


def _image(world: Path, path: Path) -> Any:
    from cian.data.checks import check_images
    from cian.tools.engine.images import read_image

    found = check_images([str(path)], workers=1)
    if found.problems:
        raise found.problems[0]
    return read_image(str(path))


def _label(world: Path, path: Path) -> Any:
    from cian.data.classes import read_label_png

    return read_label_png(path, 3)


def _saliency(world: Path, path: Path) -> Any:
    from cian.tools.engine.seeds.saliency import read_saliency

    return read_saliency(path.parent, path.stem, (48, 40))


def _survey(world: Path, **options: Any) -> Any:
    from cian.data.preparation import survey
    from cian.data.tree import DatasetTree
    from cian.errors import Problems

    root = world / "tree"
    tree = DatasetTree(root, classes=root / "classes.txt", **options)
    found = survey(tree, "train", world / "new", workers=1)
    if found.problems:
        raise Problems(found.problems)
    return found.names, found.labels


def _records(world: Path, path: Path) -> Any:
    from cian.data.records import RecordSet
    from cian.data.verification import damaged_files

    with RecordSet.open(world / "records", "train") as images:
        problems = damaged_files(images) if path.suffix == ".idx" else []
        if problems:
            raise problems[0]
        return list(images.names), images.labels, [images.image(index) for index in range(len(images))]


def _seed_records(world: Path, path: Path) -> Any:
    from cian.data.records import RecordSet

    with RecordSet.open(world / "records", "train_seeds") as seeds:
        return [seeds.label(index) for index in range(len(seeds))]


def _config(world: Path, path: Path) -> Any:
    from cian.tools.engine.config import load_config

    return asdict(load_config([path]))


def _recorded(world: Path, path: Path) -> Any:
    from cian.tools.engine.config import check_recorded

    return check_recorded(path).hash()


def _experiment(world: Path, path: Path) -> Any:
    from cian.tools.engine.reproduction.experiments import load_experiment
    from cian.tools.engine.reproduction.plan import Place, plan

    experiment = load_experiment(path)
    root = world / "tree"
    measured = plan(experiment, Place(str(root), str(root / "classes.txt"), "train", "val", world / "out"), 0)
    return asdict(experiment.claim), asdict(experiment.config), [stage.key for stage in measured.rounds]


def _network(world: Path, path: Path) -> Any:
    import mxnet as mx

    from cian.data.classes import ClassTable
    from cian.tools.engine.models.model_files import open_model

    target = str(path)[:-len(".json")] if path.name.endswith(".params.json") else path
    bare = path.name in ("oldest.params", "old.params")
    if bare:
        from cian.symbols.params_file import read_params
        return read_params(path)
    pixels = mx.nd.array(np.random.RandomState(0).uniform(0, 255, (1, 3, 17, 25)))
    opened = open_model(target, classes=ClassTable(["background", "lion", "bull"]))
    return opened.network(pixels)[0].asnumpy()


def _classifier(world: Path, path: Path) -> Any:
    from cian.data.classes import ClassTable
    from cian.symbols.params import named_values
    from cian.tools.engine.seeds.maps import load_classifier

    target = str(path)[:-len(".json")] if path.suffix == ".json" else path
    return named_values(load_classifier(target, ClassTable(["background", "lion", "bull"]))[0])


def _state(world: Path, path: Path) -> Any:
    from cian.tools.engine.models.snapshot import Snapshot
    from cian.tools.engine.training.round import _state_to_resume

    with Snapshot(world / "run", "resnet18_largefov") as snapshot:
        return _state_to_resume(snapshot, settings(world), "", False)


def _optimiser(world: Path, path: Path) -> Any:
    from cian.tools.engine.models.optimiser_states import read_momentum

    return read_momentum(path, world / "run" / "resnet18_largefov-0001.params")


def _classifier_run(world: Path, path: Path) -> Any:
    """Goes on with a finished classifier: its state, its features and its report are read."""
    from cian.data.records import RecordSet
    from cian.symbols.backbones import TINY
    from cian.tools.engine.seeds.classifier import train_classifier

    frozen = path.parent.name == "frozen"
    config = settings(world).replace(run={"snapshot": str(path.parent)}, cam={"freeze_backbone": frozen})
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    try:
        with RecordSet.open(world / "records", "train") as images:
            found = train_classifier(config, images, backbone_options=TINY["resnet18"])
        return [Path(found).read_bytes(), (path.parent / "resnet18_cam-0000.map.json").read_bytes()]
    finally:
        for name, content in before.items():
            (path.parent / name).write_bytes(content)


def _seeds(world: Path, path: Path) -> Any:
    from cian.tools.engine.seeds.make import claim_folder, read_seed_manifest

    claim_folder(path.parent, SEEDS)
    return read_seed_manifest(path.parent)["hash"]


def _stage(world: Path, path: Path) -> Any:
    from cian.tools.engine.reproduction.stages import Stage, seconds_per_image

    stage = Stage("cam", "0123456789", path.parent, "train_cam", (), images=34)
    return seconds_per_image([stage]), stage.done


def _score(world: Path, path: Path) -> Any:
    from cian.tools.engine.reproduction.experiments import load_experiment
    from cian.tools.engine.reproduction.plan import Measurement
    from cian.tools.engine.reproduction.report import record
    from cian.tools.engine.reproduction.stages import Stage

    stage = Stage("cam", "0123456789", path.parent, "evaluate", (), images=34)
    experiment = load_experiment(world / "experiments" / "voc6" / "table2" / "cp.yaml")
    measured = Measurement(experiment, 0, {"val": stage}, (), stage)
    return measured.figures(), record(measured)


def _curves(world: Path, path: Path) -> Any:
    from cian.tools.engine.training.scalars import read_scalars

    return read_scalars(path.parent)


def _torch(world: Path, path: Path) -> Any:
    from cian.symbols.torch_file import read_torch_arrays

    return read_torch_arrays(path.read_bytes(), path)


TREE = "tree/{}/train_00003.{}"
KINDS: Dict[str, Kind] = {
    "JPEG": Kind(TREE.format("JPEGImages", "jpg"), "jpeg", _image, 2),
    "mask or seed": Kind(TREE.format("SegmentationClassAug", "png"), "png", _label, 2),
    "saliency map": Kind(TREE.format("saliency", "png"), "png", _saliency),
    "XML": Kind(TREE.format("Annotations", "xml"), "text", lambda world, path: _survey(world), 2),
    "image list": Kind("tree/ImageSets/Segmentation/train.txt", "text", lambda world, path: _survey(world),
                       2),
    "labels, text": Kind("tree/labels.txt", "text", lambda world, path: _survey(world, labels_file=path)),
    "labels, arrays": Kind("tree/labels.npz", "npz", lambda world, path: _survey(world, labels_file=path)),
    "class list": Kind("tree/classes.txt", "text", lambda world, path: _survey(world)),
    "record manifest": Kind("records/train.json", "json", _records),
    "record table": Kind("records/train.*.npz", "npz", _records),
    "records": Kind("records/train.*.rec", "bytes", _records),
    "record index": Kind("records/train.*.idx", "text", _records),
    "seed records": Kind("records/train_seeds.*.rec", "bytes", _seed_records),
    "YAML": Kind("files/plain.yaml", "text", _config, 2),
    "recorded settings": Kind("run/config.yaml", "text", _recorded),
    "experiment": Kind("experiments/voc6/table2/cp.yaml", "text", _experiment, 2),
    "parameters": Kind("run/resnet18_largefov-0001.params", "params", _network, 2),
    "parameters, 2017": Kind("files/old.params", "params", _network),
    "parameters, 2016": Kind("files/oldest.params", "params", _network),
    "metadata": Kind("run/resnet18_largefov-0001.params.json", "json", _network, 2),
    "state": Kind("run/resnet18_largefov.state", "bytes", _state, 2),
    "classifier": Kind("cam/resnet18_cam-0000.params", "params", _classifier),
    "classifier metadata": Kind("cam/resnet18_cam-0000.params.json", "json", _classifier),
    "classifier state": Kind("cam/resnet18_cam.state", "bytes", _classifier_run),
    "classifier report": Kind("cam/resnet18_cam-0000.map.json", "json", _classifier_run),
    "features": Kind("frozen/features-*.f32", "bytes", _classifier_run),
    "optimiser": Kind("files/module.states", "bytes", _optimiser),
    "symbol": Kind("files/net-symbol.json", "symbol", _network, 2),
    "symbol parameters": Kind("files/net-0000.params", "params", _network),
    "ONNX": Kind("files/net.onnx", "onnx", _network, 2),
    "seeds.json": Kind("seeds/seeds.json", "json", _seeds),
    "stage": Kind("stage/done.json", "json", _stage),
    "score": Kind("stage/score.json", "json", _score),
    "curves": Kind("run/tensorboard/scalars.jsonl", "text", _curves),
    "PyTorch weights": Kind("files/lite0.pth", "bytes", _torch),
}
# Kinds that are read without MXNet, for the quick campaign.
LIGHT = ("JPEG", "mask or seed", "saliency map", "image list", "labels, arrays", "records",
         "recorded settings", "experiment")
