"""A process that one program's input path is measured in: `python -m vidtrain.benchmarking.host`.

It reads orders and answers them, one JSON object a line; scripts/mmaction2_worker.py, which runs
in another environment, understands the same. Nothing is measured here: the process that gives the
orders looks at the CPU time of this one and its loader processes.
"""

import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from vidtrain.benchmarking import own_streams
from vidtrain.benchmarking.patterns import PATTERNS, Sample

VERSIONS = ("torch", "torchvision", "pytorchvideo", "av", "opencv-python-headless")


def open_stream(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Returns the endless batches that an order asks for."""
    pattern = PATTERNS[order["pattern"]]
    samples = [Sample(**clip) for clip in order["clips"]]
    if order["program"] == "pytorchvideo":
        # Imported here: it changes a module name of torchvision's.
        from vidtrain.benchmarking import peer_pytorchvideo as peer

        return map(peer.summary, peer.batches(pattern, samples, batch=order["batch"]))
    return own_streams.batches(
        order["stream"], pattern, samples, batch=order["batch"], seed=order["seed"]
    )


def answer(order: dict[str, Any], streams: dict[str, Iterator[dict[str, Any]]]) -> dict[str, Any]:
    """Carries out one order."""
    if "open" in order:
        streams[order["open"]] = open_stream(order)
        return {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    if "run" in order:
        return {"batches": [next(streams[order["run"]]) for _ in range(order["batches"])]}
    closing = streams.pop(order["close"])
    if hasattr(closing, "close"):
        closing.close()
    return {}


def main() -> None:
    """Answers orders until there are no more."""
    warnings.filterwarnings("ignore")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    own_streams.start_process()
    streams: dict[str, Iterator[dict[str, Any]]] = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), streams)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
