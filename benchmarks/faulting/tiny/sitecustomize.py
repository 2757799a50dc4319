"""Makes every backbone of a program, and of those that it starts, small, and the demonstration with
them: files are tested, not networks. With CIAN_FAULT_CLOCK=1 a program's clock is a day behind.
"""
import importlib.util
import os
import sys
import time
from functools import partial

if os.environ.get("CIAN_FAULT_CLOCK"):
    now = time.time
    time.time = lambda: now() - 86400


def small_backbones(module):
    """Every backbone with as few channels as it can have."""
    for backbone, build in list(module.BACKBONES.items()):
        module.BACKBONES[backbone] = partial(build, **module.TINY[backbone])


def short_demonstration(module):
    """Small images, and an epoch a round."""
    module.CLASSES = ("lion", "bull")
    module.IMAGES, module.SIZE_PX = {"train": 34, "val": 4}, {"width_px": 48, "height_px": 40}
    module.SETTINGS["network"] = {"model": "resnet18_largefov"}
    module.SETTINGS["cam"] = {"model": "resnet18", "epochs": 3, "batch_size": 8, "crop_px": 33}
    freeze = ("bn_data", "conv0", "bn0", "stage1_", "stage2_")
    module.SETTINGS["train"].update(epochs=1, crop_px=33, freeze=freeze)


CHANGES = {"cian.symbols.backbones": small_backbones,
           "cian.tools.engine.reproduction.demonstration": short_demonstration}


class _Finder:
    def find_spec(self, name, path=None, target=None):
        change = CHANGES.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_changed(module):
            load(module)
            change(module)
        spec.loader.exec_module = load_changed
        return spec


sys.meta_path.insert(0, _Finder())
