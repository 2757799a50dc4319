"""Every stage that writes, as commands on a small data set, and what each leaves in an undisturbed run."""
from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

from faulting.running import LIMIT_S, Run, Watcher
from faulting.world import make_data

SETTINGS = """data: {{root: {tree}, classes: {tree}/classes.txt, train_list: train, val_list: val}}
network: {{model: resnet18_largefov}}
cam: {{model: resnet18, epochs: 3, batch_size: 8, crop_px: 33}}
seeds: {{background_threshold: 0.2}}
train: {{epochs: 3, batch_size: 8, crop_px: 33, save_every: 2, keep: 2}}
predict: {{size_px: 49}}
run: {{workers: 2}}
"""
# Stage -> tool and arguments; {0} is the folder of the run. A stage reads what those before it left.
STAGES: Dict[str, str] = {
    "prepare": "prepare --list train --list val --out {0}/records --seeds {0}/tree/SegmentationClassAug",
    "train_cam": "train_cam --records {0}/records --snapshot {0}/cam",
    "make_seeds": "make_seeds --records {0}/records --classifier {0}/cam --out {0}/seeds",
    "train": "train --label-root {0}/seeds --snapshot {0}/cian",
    "predict": "predict --snapshot {0}/cian --processes 2 --quiet --data-list train --out {0}/val",
    "evaluate": "evaluate --prediction-root {0}/val/pred_crf --data-list train",
    "predict, second round": "predict --snapshot {0}/cian --retrain-labels --processes 2 --quiet",
    "retrain": "retrain --snapshot {0}/cian",
    "export, symbol": "export --snapshot {0}/cian --out {0}/export/net --format symbol,training",
    "export, ONNX": "export --snapshot {0}/cian --out {0}/export/net --format onnx",
    "reproduce": "reproduce --table 2 --rows rt --dataset msrc --data {0}/tree --train-list train "
                 "--classes {0}/tree/classes.txt --out {0}/tables --set network.model=resnet18_largefov "
                 "network.pretrained= cam.model=resnet18 cam.pretrained= train.freeze= train.epochs=1 "
                 "train.crop_px=33 cam.epochs=1 cam.batch_size=8 predict.size_px=49 run.workers=2",
    "demo": "demo --out {0}/demo",
}
ALONE = ("reproduce", "demo", "retrain")  # what stages after them do not read, and the longest
CONFIGURED = tuple(stage for stage in STAGES if stage not in ("reproduce", "demo"))
# What differs between two undisturbed runs, because it holds times or is a log.
CHANGING = re.compile(r"\.log$|/events\.out|scalars\.jsonl$|done\.json$|report\.(md|html|json)$|index\.html$"
                      r"|-(scores|training)\.png$|run\.json$")


HANDED_ON = "labels.yaml"  # a second round's settings for its prediction, which nothing reads afterwards


class Template(NamedTuple):
    """What a stage begins with, what it leaves (by relative path), how long it takes, what it writes."""

    before: Path
    after: Dict[str, bytes]
    seconds: float
    written_kb: int


def command(stage: str, folder: Path) -> List[str]:
    """The module and arguments of a stage in the folder of a run."""
    tool, *arguments = STAGES[stage].format(folder).split()
    settings = ["-c", f"{folder}/settings.yaml"] if stage in CONFIGURED else []
    return [f"cian.tools.{tool}", *(settings if tool != "retrain" else []), *arguments]


def make_templates(home: Path, stages: List[str]) -> Dict[str, Template]:
    """Run the stages undisturbed in ``home/run`` and keep what is before and after each."""
    run, found = home / "run", {}
    shutil.rmtree(home, ignore_errors=True)
    run.mkdir(parents=True)
    make_data(run / "tree")
    (run / "settings.yaml").write_text(SETTINGS.format(tree=run / "tree"))
    (home / "before").mkdir()
    for stage in list(STAGES)[:1 + max(map(list(STAGES).index, stages))]:
        if stage in ALONE and stage not in stages:
            continue
        if stage == "retrain":
            _keep_half_of_labels(run)
        before = home / "before" / stage
        shutil.copytree(run, before, symlinks=True)
        started = time.monotonic()
        trial = Run(command(stage, run), home / "template.log")
        if trial.end(4 * LIMIT_S) != 0:
            raise RuntimeError(f"the undisturbed stage {stage!r} fails: {trial.told()[-2000:]}")
        seconds, written = time.monotonic() - started, _size(run) - _size(before)
        found[stage] = Template(before, contents(run), seconds, max(0, written) >> 10)
        print(f"{stage}: {found[stage].seconds:.1f} s undisturbed", flush=True)
        if stage in ALONE:
            restore(before, run)
    return found


def _keep_half_of_labels(run: Path) -> None:
    """Every second label of the second round becomes the truth, for these networks learn nothing; the
    others are missing, so that the stage predicts them first.
    """
    for folder in ("train_aug_pred", "train_aug_pred_crf"):
        for number, path in enumerate(sorted((run / "cian" / folder).glob("*.png"))):
            path.unlink()
            if number % 2:
                shutil.copy(run / "tree" / "SegmentationClassAug" / path.name, path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def restore(before: Path, run: Path) -> None:
    """Put a folder back as it was, times of files included."""
    shutil.rmtree(run)
    shutil.copytree(before, run, symlinks=True)


def run_again(stage: str, run: Path, log: Path, watcher: Watcher, template: Template,
              variables: Optional[Mapping[str, str]] = None) -> List[str]:
    """Run the stage after a fault, with these variables in its environment, and end the watcher; what is
    not as in an undisturbed run.
    """
    trial = Run(command(stage, run), log, variables=variables)
    code = trial.end()
    faults = [] if code == 0 else [f"the same command ends with {code}: {trial.told()[-600:]}"]
    faults += [f"is left by the whole run: {line}" for line in trial.left()]
    faults += [f"was half written under its name: {path}" for path in watcher.close()]
    faults += [f"is left by the whole run: {path}" for path in watcher.memory()]
    return faults if code else faults + differences(contents(run), template.after)


def contents(run: Path) -> Dict[str, bytes]:
    """Every file below a run's folder; of those that change from run to run, the name alone."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.name == HANDED_ON:
            continue
        if path.is_file() or not any(path.iterdir()):
            found[_steady(name)] = b"" if path.is_dir() or CHANGING.search(name) else path.read_bytes()
    return found


def _steady(name: str) -> str:
    return re.sub(r"events\.out\..*", "events.out", name)


def differences(found: Dict[str, bytes], wanted: Dict[str, bytes]) -> List[str]:
    """What differs between a run that was disturbed and one that was not."""
    wrong = [f"is missing: {name}" for name in wanted if name not in found]
    wrong += [f"is left: {name}" for name in found if name not in wanted]
    return wrong + [f"differs: {name}" for name in wanted
                    if name in found and not same(found[name], wanted[name], name)]


def same(one: bytes, other: bytes, name: str = "") -> bool:
    """Whether two files hold the same: of archives (states, tables) their members, and all but the times
    of the files that something was made from.
    """
    if one == other:
        return True
    if one[:4] == b"PK\3\4" == other[:4]:
        return _members(one) == _members(other)
    if name.endswith("made_from.jsonl"):
        return _made_from(one) == _made_from(other)
    if "/records/" in name and name.endswith(".json"):
        timeless = {"fingerprint": "", "checksum": ""}
        return {**json.loads(one), **timeless} == {**json.loads(other), **timeless}
    return False


def _made_from(content: bytes) -> Dict[str, Any]:
    """The last line of each name, without times; half a line counts nothing."""
    entries: Dict[str, Any] = {}
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            entries[entry["name"]] = entry
    return {name: {**entry, "files": {key: mark[:1] + mark[2:] for key, mark in entry["files"].items()}}
            for name, entry in entries.items()}


def _members(content: bytes) -> Dict[str, Any]:
    import io

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found: Dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    for name, member in found.items():
        if name.startswith("tree.json"):
            found[name] = json.loads(member[member.index(b"{"):])
    return found
