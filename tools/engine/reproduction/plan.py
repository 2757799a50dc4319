"""From rows of the paper's tables to the stages that measure them, and from the stages' results to
figures.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from cian.data.lists import resolve_list
from cian.errors import InputError
from cian.files import read_bytes, read_json
from cian.tools.engine.config import Config
from cian.tools.engine.prediction.outputs import label_folder
from cian.tools.engine.reproduction.experiments import Experiment
from cian.tools.engine.reproduction.stages import Stage, stage_key
from cian.tools.engine.schema import PredictConfig

TRAINING = ("preset", "network", "loss", "train", "run")  # sections that decide what a training round gives


@dataclass(frozen=True)
class Place:
    """The data set of a reproduction, and the folder of its results.

    Attributes
    ----------
    data : VOC-layout tree.
    classes : 'voc' or a file.
    train_list, val_list : files, or names below ImageSets/Segmentation.
    out : folder of all stages.
    saliency_root : folder of saliency images; empty where the rows do not use any.
    score_list, score_root : list and tree to score on in place of ``val_list`` and ``data``; the
        stages before prediction are the same.
    """

    data: str
    classes: str
    train_list: str
    val_list: str
    out: Path
    saliency_root: str = ""
    score_list: str = ""
    score_root: str = ""

    def lay_under(self, config: Config) -> Config:
        """The configuration on this data set."""
        return config.replace(data={"root": self.data, "classes": self.classes, "train_list": self.train_list,
                                    "val_list": self.val_list}, seeds={"saliency_root": self.saliency_root})

    @property
    def scored(self) -> Tuple[str, str]:
        """The tree and the list that networks are scored on."""
        return self.score_root or self.data, self.score_list or self.val_list

    @property
    def fingerprint(self) -> List[str]:
        """What the stages' keys know of the data: SHA-256 of both lists and of the class list."""
        content = ["\n".join(resolve_list(self.data, name)).encode()
                   for name in (self.train_list, self.val_list)]
        content += [] if self.classes == "voc" else [read_bytes(self.classes)]
        return [hashlib.sha256(text).hexdigest() for text in content]


@dataclass(frozen=True)
class Measurement:
    """One row with one seed: the stages whose ``score.json`` hold its figures, and the training
    rounds before them.
    """

    experiment: Experiment
    seed: int
    scores: Dict[str, Stage]
    rounds: Tuple[Stage, ...]
    seeds: Stage

    def figures(self) -> Optional[Dict[str, float]]:
        """mIoU in per cent by figure ('val', 'val_crf'), or None before every stage is done.

        Raises
        ------
        InputError
            When a score's file is damaged.
        """
        if not all(stage.done for stage in self.scores.values()):
            return None
        found = {}
        again = "remove its folder and run the command again"
        for name, stage in self.scores.items():
            path = stage.folder / "score.json"
            score = read_json(path, "score", again).get("mean_iou")
            if not isinstance(score, (int, float)):
                raise InputError("is not a score", file=path, field="mean_iou", remedy=again)
            found[name] = 100 * float(score)
        return found


def plan(experiment: Experiment, place: Place, seed: int) -> Measurement:
    """The stages of a row: prepare, CAM, seeds, training rounds, prediction, scores. Rows share
    equal ones by their folders.

    ``seed`` is the seed of the training rounds; the CAM classifier and the choice of replaced seeds
    keep those of the file, so that the rows and seeds of a table start from one set of seeds.
    """
    config = place.lay_under(experiment.config).replace(train={"seed": seed})
    images = len(resolve_list(place.data, place.train_list))
    seeds = _seed_stages(config, place, images)
    rounds = [_first_round(config, place, seeds, images)]
    if experiment.claim.rounds == 2:
        rounds.append(_second_round(config, place, seeds, rounds[0], images))
    scores = _score_stages(config, place, rounds[-1])
    return Measurement(experiment, seed, scores, tuple(rounds), seeds)


def _stage(place: Place, kind: str, key: str, tool: str, arguments: Sequence[str], after: Sequence[Stage],
           config: Config, images: int) -> Stage:
    return Stage(kind, key, place.out / f"{kind}-{key}", tool, tuple(arguments), tuple(after), config, images)


def _records(config: Config, place: Place, images: int, arguments: Sequence[str] = (),
             *depends: Any) -> Stage:
    """Packing the training list, or the one that ``arguments`` name and ``depends`` tells from others."""
    key = stage_key("records", place.fingerprint, *depends)
    return _stage(place, "records", key, "prepare",
                  [*arguments, "--out", str(place.out / f"records-{key}")], (), config, images)


def _seed_stages(config: Config, place: Place, images: int) -> Stage:
    """Records, CAM classifier, seeds; the last of them, whose folder is that of the seeds."""
    records = _records(config, place, images)
    located = config.replace(data={"records": str(records.folder)})
    key = stage_key("cam", config.hash(("cam",)), records.key)
    cam = _stage(place, "cam", key, "train_cam", ["--snapshot", str(place.out / f"cam-{key}")], (records,),
                 located, images * config.cam.epochs)
    key = stage_key("seeds", config.hash(("seeds",)), cam.key)
    arguments = ["--snapshot", str(cam.folder), "--out", str(place.out / f"seeds-{key}" / "seeds")]
    if config.seeds.strong_ratio:
        arguments += ["--strong-masks", str(Path(place.data) / "SegmentationClassAug")]
    return _stage(place, "seeds", key, "make_seeds", arguments, (cam,), located, images)


def _first_round(config: Config, place: Place, seeds: Stage, images: int) -> Stage:
    assert seeds.config is not None
    located = seeds.config.replace(data={"label_root": str(seeds.folder / "seeds")})
    key = stage_key("round1", config.hash(TRAINING), seeds.key)
    return _stage(place, "round1", key, "train", ["--snapshot", str(place.out / f"round1-{key}")], (seeds,),
                  located, images * config.train.epochs)


def _second_round(config: Config, place: Place, seeds: Stage, first: Stage, images: int) -> Stage:
    assert first.config is not None
    key = stage_key("labels", first.key, config.hash(("predict",)))
    labels = _stage(place, "labels", key, "predict",
                    ["--retrain-labels", "--quiet", "--checkpoint", str(first.folder), "--out",
                     str(place.out / f"labels-{key}")], (first,), first.config, images)
    located = first.config.replace(
        data={"label_root": str(labels.folder / label_folder(config.predict.retrain_crf))})
    key = stage_key("round2", labels.key, config.hash(TRAINING))
    # one of its own: rows with one first round may differ in their labels
    snapshot = place.out / f"round2-{key}"
    return Stage("round2", key, Path(f"{snapshot}_retrain"), "retrain",
                 ("--snapshot", str(snapshot), "--start", str(first.folder)), (labels,), located,
                 images * config.train.epochs)


def _score_stages(config: Config, place: Place, trained: Stage) -> Dict[str, Stage]:
    """Prediction of the list that is scored, and both of its scores."""
    root, split = place.scored
    names = resolve_list(root, split)
    config, images = config.replace(data={"root": root, "val_list": split}), len(names)
    # the validation list is known to the keys of the stages before
    other = [place.score_root, names] if place.score_list or place.score_root else []
    after: List[Stage] = [trained]
    if config.predict.features:  # which are kept beside the images' records
        after.append(_records(config, place, images, ["--list", split], root, split, names))
        config = config.replace(data={"records": str(after[-1].folder)})
    usual = PredictConfig()  # what makes labels for a second round does not enter these predictions
    retrain = {key.name: getattr(usual, key.name) for key in fields(usual) if key.name.startswith("retrain_")}
    key = stage_key("val", trained.key, config.replace(predict=retrain).hash(("predict",)), *other)
    predicted = _stage(place, "val", key, "predict",
                       ["--quiet", "--checkpoint", str(trained.folder), "--out",
                        str(place.out / f"val-{key}")], after, config, images)
    figures = {"val": "pred"} if config.predict.crf == "none" else {"val": "pred", "val_crf": "pred_crf"}
    scores = {}
    for figure, folder in figures.items():
        key = stage_key("score", predicted.key, folder)
        target = place.out / f"score-{key}"
        scores[figure] = _stage(place, "score", key, "evaluate",
                                ["--prediction-root", str(predicted.folder / folder), "--json",
                                 str(target / "score.json")], (predicted,), config, images)
    return scores


def random_starts(measurements: Iterable[Measurement]) -> List[str]:
    """The settings that name no pretrained weights in some row."""
    configs = [measurement.experiment.config for measurement in measurements]
    return [f"{section}.pretrained" for section in ("network", "cam")
            if not all(getattr(config, section).pretrained for config in configs)]
