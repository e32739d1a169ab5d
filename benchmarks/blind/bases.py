"""The networks that are changed: trained ones and public ones; those built to have one operator in the way are in
`built.py`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
from built import BUILT

ROOT = Path(__file__).resolve().parents[2]
ZOO = ("mobilenetv3_large_100", "regnety_002", "ghostnet_100", "levit_128s", "repvgg_a0")


def trained() -> dict[str, onnx.ModelProto]:
    """The small trained networks of models/, unfolded."""
    import torch

    logging.disable(logging.WARNING)
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted((ROOT / "models").glob("*.pt")):
            found = torch.onnx.export(torch.export.load(path), (), dynamo=True, optimize=False, verbose=False)
            assert found is not None
            made[path.stem] = plain(found.model_proto)
    logging.disable(logging.NOTSET)
    return made


def public(cache: Path) -> dict[str, onnx.ModelProto]:
    """What networks.py has left in its cache."""
    return {name: plain(onnx.load(cache / f"{name}.onnx")) for name in ZOO if (cache / f"{name}.onnx").exists()}


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which quote files."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
    return model


__all__ = ["BUILT", "ZOO", "public", "trained"]
