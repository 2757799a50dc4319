"""Opens mutated model files in a process of its own, for native code may take the process with it.

``python hostile_worker.py KIND FILE FIRST COUNT`` mutates FILE by the seeds FIRST.. and opens each
result as a user would; an :class:`InputError` or a network that runs is fine. The last line printed
is a JSON summary; before each file its seed goes to FILE.seed. Checksums are made to fit, as the
author of a hostile file would, so that every check behind them is reached.
"""
import json
import os
import random
import re
import resource
import sys
import time
from pathlib import Path

from cian.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
from faulting import mutators

MUTATIONS = {"metadata": mutators.metadata_file, "symbol": mutators.symbol_file,
             "onnx": mutators.onnx_file, "params": mutators.params_file}


def main(kind, path, first, count):
    """Print how many mutations were refused, how many ran, and what else happened."""
    import mxnet as mx
    import numpy as np

    from cian.data.classes import ClassTable
    from cian.symbols.metadata import read_metadata, write_metadata
    from cian.tools.engine.models.model_files import open_model
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    sidecar = read_metadata(path) if kind == "params" else None
    opened = path[:-len(".json")] if kind == "metadata" else path
    with open(path, "rb") as stream:
        content = stream.read()
    pixels = mx.nd.array(np.random.RandomState(0).uniform(0, 255, (1, 3, 17, 25)))
    refused, ran, wrong, problems = 0, 0, [], set()
    for seed in range(first, first + count):
        with open(path + ".seed", "w") as stream:
            stream.write(str(seed))
        with open(path, "wb") as stream:
            stream.write(MUTATIONS[kind](content, random.Random(seed)))
        if sidecar is not None:
            write_metadata(path, sidecar)
        started = time.monotonic()
        try:
            open_model(opened,
                       classes=ClassTable(["background", "cat", "dog"])).network(pixels)[0].wait_to_read()
            ran += 1
        except InputError as error:
            refused += 1
            problems.add(re.sub(r"[^a-z ]", "", error.problem)[:30])
            if "\n" in str(error) or os.path.dirname(path) not in str(error):
                wrong.append([seed, f"message does not name the file: {error}"])
        except Exception as error:  # any other kind is what this process looks for
            wrong.append([seed, f"{type(error).__name__}: {str(error)[:300]}"])
        if time.monotonic() - started > 20:
            wrong.append([seed, f"took {time.monotonic() - started:.0f} s"])
    print(json.dumps({"refused": refused, "ran": ran, "wrong": wrong, "problems": len(problems)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
