"""Train the networks of `nets.py` and write each beside this file.

    python models/train.py                   all of them: NAME.pt and models.json
    python models/train.py digits_resnet     only those named
    python models/train.py --demo            bnfold/data/demo.onnx

A NAME.pt is a `torch.export` archive of the network in inference mode with every BN still in it and a free batch size.
It holds raw tensors and JSON: no pickle, no sample inputs, no path of the machine that wrote it.
The same versions of everything on the same machine give the same bytes.
"""

import argparse
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import nets
import onnx
import tasks
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "models.json"
DEMO = HERE.parent / "bnfold" / "data" / "demo.onnx"
SEED = 0
BATCH = 64


@dataclass(frozen=True)
class Recipe:
    """How long to train, and what to say of the result."""

    idiom: str
    folds_today: int
    epochs: int = 30


@dataclass(frozen=True)
class Record:
    """One row of models.json."""

    name: str
    class_name: str
    idiom: str
    task: str
    parameters: int
    bytes: int
    batch_norms: int
    folds_today: int
    test_accuracy: float


RECIPES: dict[str, Recipe] = {
    "digits_resnet": Recipe("residual CNN, BN after each convolution", 8),
    "digits_mobilenet": Recipe("inverted bottlenecks, depthwise, squeeze-excite", 11),
    "digits_densenet": Recipe("dense pre-activation, BN between concatenation and ReLU", 9),
    "digits_repvgg": Recipe("RepVGG in training form, identity BN branches", 10),
    "digits_levit": Recipe("LeViT hybrid, Linear and BN over flattened tokens", 11, epochs=60),
    "digits_convmixer": Recipe("ConvMixer, BN after GELU", 1),
    "digits_unet": Recipe("encoder-decoder, grouped transposed convolutions", 7),
    "digits_conv1d": Recipe("1-D CNN, BN on the input", 5),
    "digits_conv3d": Recipe("3-D CNN on clips", 3, epochs=15),
    "digits_mlp": Recipe("tabular MLP, BN before each linear layer", 3),
    "digits_siamese": Recipe("siamese, one trunk called twice", 6, epochs=15),
}


def train(net: nn.Module, split: tasks.Split, epochs: int) -> None:
    """Fit `net` and leave it in inference mode."""
    inputs, labels = [torch.from_numpy(x) for x in split.train_x], torch.from_numpy(split.train_y)
    # The last, smaller batch is dropped: its statistics would weigh as much as a full one's.
    steps = len(labels) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=epochs * steps)
    net.train()
    for _ in range(epochs):
        for picked in torch.randperm(len(labels))[: steps * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(net(*(x[picked] for x in inputs)), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def trained(net_class: type[nn.Module], split: tasks.Split, epochs: int) -> nn.Module:
    torch.manual_seed(SEED)
    net = net_class()
    train(net, split, epochs)
    return net


def predict(net: nn.Module, inputs: tuple[tasks.Floats, ...]) -> tasks.Floats:
    with torch.inference_mode():
        return net(*map(torch.from_numpy, inputs)).numpy()


def export(net: nn.Module, inputs: tuple[tasks.Floats, ...]) -> ExportedProgram:
    """The inference program of `net` for any batch size, with module paths but without file paths."""
    examples: tuple[Tensor, ...] = tuple(torch.from_numpy(x[:2]) for x in inputs)
    program = torch.export.export(net, examples, dynamic_shapes=tuple({0: Dim("batch")} for _ in examples))
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def make(name: str) -> Record:
    """Train, test, export and save one network."""
    recipe, split = RECIPES[name], tasks.load(name)
    net = trained(nets.NETS[name], split, recipe.epochs)
    program = export(net, split.test_x)
    archive = io.BytesIO()
    torch.export.save(program, archive)
    (HERE / f"{name}.pt").write_bytes(archive.getvalue())
    return Record(
        name=name,
        class_name=type(net).__name__,
        idiom=recipe.idiom,
        task=tasks.TASKS[name].question,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        bytes=len(archive.getvalue()),
        batch_norms=sum(node.target is torch.ops.aten.batch_norm.default for node in program.graph.nodes),
        folds_today=recipe.folds_today,
        test_accuracy=round(tasks.accuracy(name, predict(net, split.test_x), split.test_y), 4),
    )


def write_records(records: list[Record]) -> None:
    """Put `records` into models.json, in the order of RECIPES, and keep the rows of the other models."""
    rows = {row["name"]: row for row in json.loads(RECORDS.read_text())} if RECORDS.exists() else {}
    for record in records:
        row = asdict(record)
        rows[record.name] = {"class" if key == "class_name" else key: value for key, value in row.items()}
    ordered = [rows[name] for name in RECIPES if name in rows]
    RECORDS.write_text(json.dumps(ordered, indent=2) + "\n")


def without_stack_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the metadata in which the exporter quotes the files of this machine."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        kept = [entry for entry in holder.metadata_props if "stack_trace" not in entry.key]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    return model


def make_demo() -> float:
    """Train the demo network, write it as ONNX with its BNs, and return its test accuracy."""
    split = tasks.load("digits_demo")
    net = trained(nets.DigitsDemo, split, epochs=30)
    examples = (torch.from_numpy(split.test_x[0][:2]),)
    shapes = ({0: Dim("batch")},)
    program = torch.onnx.export(
        net, examples, dynamo=True, optimize=False, dynamic_shapes=shapes, external_data=False, verbose=False
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    DEMO.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(without_stack_traces(program.model_proto), DEMO)
    return tasks.accuracy("digits_demo", predict(net, split.test_x), split.test_y)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the networks and write them beside this file.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--demo", action="store_true", help="write bnfold/data/demo.onnx instead")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in RECIPES]
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    if arguments.demo:
        print(f"{DEMO.name}: test accuracy {make_demo():.4f}, {DEMO.stat().st_size} bytes")
        return
    for name in arguments.names or RECIPES:
        record = make(name)
        write_records([record])
        print(f"{name}: test accuracy {record.test_accuracy:.4f}, {record.bytes} bytes", flush=True)


if __name__ == "__main__":
    main()
