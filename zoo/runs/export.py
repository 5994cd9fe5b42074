"""`zoo export`: a trained model as a file for other runtimes, and the certificate that both compute the same."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image

from datamodules.base import DetectionDataModule
from datamodules.outputs import require_writable
from zoo.contract.batch import Batch, Sample, collate
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.scores import or_null
from zoo.exporting.certificate import JSON_FILE, certificate, paired_scores, readable, write_certificate
from zoo.exporting.compare import compare, fact_differences, first_difference, milliseconds, session_of
from zoo.exporting.differences import mean_difference
from zoo.exporting.graph import RAW
from zoo.exporting.limits import LIMITS
from zoo.exporting.onnx import exported
from zoo.exporting.openvino import converted, quantised
from zoo.exporting.openvino import save as save_openvino
from zoo.exporting.reduced import parts_of, reduced
from zoo.prediction.image_input import read_rgb
from zoo.prediction.masks import sizes_without_padding
from zoo.runs.bench_arguments import made_up_images
from zoo.runs.console import Console, quoted
from zoo.runs.evaluate import folder_data, parse_layers, refuse_other_labels
from zoo.runs.finetune import ImageSize, parse_size
from zoo.runs.lightning import quiet
from zoo.runs.mask_report import mask_scores
from zoo.runs.subject import Subject, load
from zoo.runs.timing import processor_name
from zoo.runs.to_transformers import to_transformers
from zoo.runtimes.facts import KEY, ExportedFacts, Precision, parse_facts
from zoo.runtimes.module import inputs_of, open_session
from zoo.runtimes.onnx import SUFFIX, Arrays
from zoo.runtimes.openvino import GRAPH_FILE, files_of
from zoo.storage.durable import written
from zoo.storage.staging import put_in_place, staged

Target = Literal["onnx", "openvino", "transformers"]
FILES = {"onnx": f"model{SUFFIX}", "openvino": GRAPH_FILE}
COMPARED = 16  # images, of which raw outputs and detections are compared
CALIBRATED = 64  # images of which int8 learns ranges
AT_ONCE = 2  # of them: batches of one are not enough, large ones of DETR's images take gigabytes


def export(
    model: str | Path | Detector,
    to: Target = "onnx",
    output: str | Path | None = None,
    *,
    data: str | Path | None = None,
    image_size: ImageSize | None = None,
    raw: bool = False,
    precision: Precision = "fp32",
    decoder_layers: int | None = None,
    registry: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Writes a model for another runtime into a folder, with a certificate; returns the certificate.

    The file is there only if the certificate passed.

    >>> import zoo
    >>> certificate = zoo.export("run", output="exported", console=zoo.Silent())
    >>> certificate["passed"], zoo.load("exported/model.onnx").runtime
    (True, 'onnxruntime')

    Args:
        model: a detector, a name in the registry, a checkpoint or a run folder.
        to: the form of the file.
        output: new or empty folder; None: named after the model and the form.
        data: folder or address, on whose val split both are compared; None: on made-up images, without AP. For
            transformers an image or a folder of images.
        image_size: another input size, as of `finetune`.
        raw: logits and boxes of all queries, without the family's post-processing.
        precision: of the file.
        decoder_layers: that are evaluated; None for all.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        console: for the user.

    Raises:
        ValueError, OSError: the model or data cannot be read, or the network cannot be captured.
    """
    quiet()
    console = console or Console()
    if to not in get_args(Target):
        raise ValueError(f"--to {to!r:.40}: it is one of {', '.join(get_args(Target))}")
    detector = model if isinstance(model, Detector) else load(model, registry)
    if detector.runtime != "pytorch":
        raise ValueError(f"{detector.name} is an exported file; export the model that it was made of")
    if precision not in get_args(Precision):
        raise ValueError(f"--precision {precision!r:.40}: it is one of {', '.join(get_args(Precision))}")
    if precision == "int8" and data is None:
        raise ValueError("int8 is learned and judged on images of yours: give --data FOLDER")
    folder = (
        Path(output) if output is not None else Path(f"{Path(detector.name).stem.replace(':', '-')}-{to}")
    )
    refuse_used(folder)
    if to == "transformers":
        own = {"raw": raw, "image_size": image_size is not None, "decoder_layers": decoder_layers is not None}
        asked = [key for key, given in (own | {"precision": precision != "fp32"}).items() if given]
        if asked:
            raise ValueError(
                f"--{asked[0].replace('_', '-')} is not for --to transformers, which takes a model as it is"
            )
        return to_transformers(detector, folder, data=data, console=console)
    if decoder_layers is not None:
        parse_layers(str(decoder_layers), detector.module)
    contract = contract_of(detector, image_size)
    console.say(
        f"export      {detector.name} to {to}, {precision}: the network is captured, which takes a minute"
    )
    with staged(folder.absolute().parent) as staging, as_exported(detector, decoder_layers):
        whole, graph = exported(
            detector, contract, raw=raw, precision=precision, decoder_layers=decoder_layers
        )
        certify = functools.partial(certified, detector, contract=contract, data=data, console=console)
        if precision == "fp32" or (to, precision) == ("openvino", "fp16"):
            path = save(graph, to, staging, precision)
            document = certify(path)
        else:
            images = calibration(detector, contract, data, facts_of_graph(graph))
            path, document = measured(whole, graph, to, precision, images, staging, certify, console)
        write_certificate(document, staging)
        if not document["passed"]:
            for file in files_of(path):
                file.unlink()
        put_in_place(staging, folder, lambda there: any(there.iterdir()))
    say(document, folder, console)
    return document


def check(
    file: str | Path,
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    registry: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Repeats the certificate of an exported file on this machine.

    Args:
        file: the file, or the folder that `export` made.
        model: that it was made of; None: by the name that the file tells.
        data: as of `export`.
        output: folder of the new certificate; None writes none.
        registry: where the model is looked up.
        console: for the user.

    Raises:
        ValueError, OSError: the file, the model or the data cannot be read.
    """
    quiet()
    console = console or Console()
    path = Path(file)
    if path.is_dir():
        path = next((path / name for name in FILES.values() if (path / name).is_file()), path / FILES["onnx"])
    facts = session_of(Detector.from_exported(path)).facts
    try:
        source = load(facts.source.name if model is None else model, registry)
    except (ValueError, OSError) as error:
        if model is not None:
            raise
        raise ValueError(
            f"{path} was made of {facts.source.name}, which is not here ({error}); name the model or its "
            f"checkpoint: zoo export NAME --check {quoted(file)}"
        ) from error
    contract = replace(source.input, size=facts.contract().size)
    with as_exported(source, facts.decoder_layers):
        document = certified(source, path, contract, data, console)
    beside = path.with_name(JSON_FILE)
    if beside.is_file() and json.loads(beside.read_bytes())["files"] != document["files"]:
        document["failures"].append(f"the file is not the one of the certificate beside it, {beside}")
        document["passed"] = False
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_certificate(document, Path(output))
    say(document, None if output is None else Path(output), console)
    return document


def save(
    graph: Any, to: Target, folder: Path, precision: Precision, exact: Collection[str] = (),
    images: Sequence[Arrays] = (),
) -> Path:  # fmt: skip
    """Writes onnx.ModelProto into a folder in the form that is asked for; returns the file to open.

    Args:
        graph: in float32.
        to: the form.
        folder: what it holds of the same name is overwritten.
        precision: of the file.
        exact: names of nodes that stay in float32.
        images: on which int8 learns the ranges of its values.
    """
    path = folder / FILES["onnx"]
    if to == "onnx" and precision != "fp32":
        graph = reduced(graph, precision, exact, images)
    with written(path):
        path.write_bytes(graph.SerializeToString())
    if to == "onnx":
        return path
    model = converted(path)
    if precision == "int8":
        model = quantised(model, exact, images)
    saved = save_openvino(model, folder, half=precision == "fp16")
    path.unlink()
    return saved


def facts_of_graph(graph: Any) -> ExportedFacts:
    """The facts in the metadata of onnx.ModelProto."""
    return parse_facts(next(entry.value for entry in graph.metadata_props if entry.key == KEY), "the graph")


def calibration(
    detector: Detector, contract: InputContract, data: str | Path | None, facts: ExportedFacts
) -> list[dict[str, Any]]:
    """Inputs of single images from which ranges and sensitivities are learned."""
    batches = (
        made_up_batches(contract) if data is None else parts(folder_data(data, contract, detector.module))
    )
    singles = (batch.part(image, image + 1) for batch in batches for image in range(len(batch)))
    return [inputs_of(facts, cropped(batch)) for batch in itertools.islice(singles, CALIBRATED)]


def cropped(batch: Batch) -> Batch:
    """A batch of one without the padding that others of its batch asked for."""
    height, width = sizes_without_padding(batch)[0]
    return replace(
        batch,
        images=batch.images[..., :height, :width].contiguous(),
        padding=batch.padding[:, :height, :width],
    )


def measured(
    whole: Any, graph: Any, to: Target, precision: Precision, images: list[dict[str, Any]], folder: Path,
    certify: Callable[..., dict[str, Any]], console: Console,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Reduces all parts of the network, and gives the most sensitive back to float32 until the certificate passes.

    Returns:
        The file and its certificate, which has failed where no part is left.
    """
    part_of = parts_of(whole)
    nodes = [node.name for node in graph.graph.node]

    def saved(reduced_parts: Collection[str]) -> Path:
        exact = [name for name in nodes if part_of.get(name) not in reduced_parts]
        return save(graph, to, folder, precision, exact, images)

    left = sorted(set(part_of.values()))
    path = saved(left)
    document = certify(path)
    sensitive: list[str] = []
    if not document["passed"]:
        exact = outputs_of(save(graph, to, folder, "fp32"), images)
        costs = {part: apart_from(exact, outputs_of(saved([part]), images)) for part in left}
        sensitive = sorted(left, key=lambda part: costs[part])
        told = ", ".join(f"{part} {costs[part]:.3g}" for part in reversed(sensitive))
        console.say(f"measured    mean difference with one part alone in {precision}: {told}")
    while not document["passed"] and len(left) > 1:
        left.remove(sensitive.pop())
        kept = sorted(set(part_of.values()) - set(left))
        console.say(f"kept        {', '.join(kept)} in float32, for {document['failures'][0]}")
        path = saved(left)
        document = certify(path, kept=kept)
    return path, document


def outputs_of(path: Path, images: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Logits and boxes of all queries, of single images."""
    run = open_session(path).inner(RAW)
    return [run(inputs) for inputs in images]


def apart_from(exact: list[dict[str, Any]], found: list[dict[str, Any]]) -> float:
    """Mean difference over images, see `mean_difference`."""
    each = [
        mean_difference(*((a[name][0], b[name][0].astype(np.float32)) for name in RAW))
        for a, b in zip(exact, found, strict=True)
    ]
    return float(np.mean(each))


def refuse_used(folder: Path) -> None:
    """Raises ValueError where an export would be written over something."""
    require_writable(folder, "--output")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; give another --output")


def contract_of(source: Detector, image_size: ImageSize | None) -> InputContract:
    """The contract of the export, at another size if one is given."""
    if image_size is None:
        return source.input
    limits = source.module.limits_of(source.module.init_args)
    size = parse_size(image_size, source.input.resize, limits.multiple_of)
    return replace(source.input, size=(size[0], size[1]))


@contextmanager
def as_exported(detector: Detector, decoder_layers: int | None) -> Iterator[None]:
    """While a model evaluates with its first decoder layers, all for None; then everything is as before."""
    module = detector.module
    device, facts = module.device, (module.label_map, module.input)
    before = None if decoder_layers is None else module.set_decoder_layers(decoder_layers)
    module.to("cpu")
    try:
        yield
    finally:
        if before is not None:
            module.set_decoder_layers(before)
        module.label_map, module.input = facts  # an evaluation binds them to its data
        module.to(device)


def say(document: dict[str, Any], folder: Path | None, console: Console) -> None:
    """The certificate for a person, and where it lies."""
    console.say(readable(document))
    if folder is not None:
        what = "exported   " if document["passed"] else "refused, so only its certificate is in"
        console.say(f"{what} {folder}", red=not document["passed"])


def certified(
    source: Detector, path: Path, contract: InputContract, data: str | Path | None, console: Console,
    kept: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The certificate of a file; names the first block that differs where it failed."""
    file = Detector.from_exported(path)
    facts = session_of(file).facts
    limits = LIMITS[facts.precision]
    if data is None:
        images = {"kind": f"{COMPARED} made up, large spots under noise; AP needs --data", "data": None}
        batches = made_up_batches(contract)
    else:
        loaded = folder_data(data, contract, source.module)
        batches = itertools.islice(parts(loaded), -(-COMPARED // AT_ONCE))
        images = {"kind": f"the first of the val split of {data}", "data": loaded.digest()}
    differences = fact_differences(source, facts, contract)
    compared = compare(source, file, batches, limits)
    assert compared.worst is not None
    times = milliseconds((source, file), compared.worst.part(0, 1))
    # what differs already would be evaluated as another model
    scores = None if data is None or differences else scores_of(source, file, data, contract, console)
    document = certificate(
        files_of(path), facts, file.runtime, differences, compared, images, scores, limits,
        dict(zip(("pytorch", file.runtime), times, strict=True)),
        f"{processor_name()}, {torch.get_num_threads()} threads", kept,
    )  # fmt: skip
    if facts.precision == "fp32" or not document["passed"]:
        for batch in (compared.straight, compared.worst):
            if batch is not None and document["first_difference"] is None:
                document["first_difference"] = first_difference(source, file, contract, batch, limits.block)
            if document["passed"] and document["first_difference"]:
                document["failures"].append(f"a block inside differs: {document['first_difference']}")
                document["passed"] = False
            if document["passed"]:
                break  # where queries came in another order, blocks differ and nothing is wrong
    return document


def made_up_batches(contract: InputContract) -> Iterator[Batch]:
    """Images that need no data, as the data path gives them; some stand upright."""
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    encoded = made_up_images()
    for first in range(0, COMPARED, AT_ONCE):
        samples = []
        for number in range(first, first + AT_ONCE):
            picture = read_rgb(encoded[number])
            assert isinstance(picture, Image.Image)
            if number % 4 == 3:
                picture = picture.transpose(Image.Transpose.ROTATE_90)
            small = contract.resize_image(picture)
            samples.append(Sample(small, *nothing, number, (picture.height, picture.width)))
        yield collate(samples)


def parts(data: DetectionDataModule) -> Iterator[Batch]:
    """The batches of a val split in parts of a few images."""
    data.setup("validate")
    for batch in data.val_dataloader():
        for first in range(0, len(batch), AT_ONCE):
            yield batch.part(first, min(first + AT_ONCE, len(batch)))


def scores_of(
    source: Detector, file: Detector, data: str | Path, contract: InputContract, console: Console
) -> dict[str, Any]:
    """AP of both on the same images with the interval of the difference; of masks and segments where there are some."""
    console.say(f"evaluate    {source.name} and the file on {data}")
    (mine, more), (theirs, others) = (evaluated(one, data, contract) for one in (source, file))
    document = paired_scores(mine, theirs)
    for kind, name in (("segm", "AP"), ("panoptic", "PQ")):
        if kind in more:
            values = [found[kind][name] for found in (more, others)]
            apart = None if None in values else or_null(values[1] - values[0])
            document[f"{kind} {name}"] = {"source": values[0], "file": values[1], "difference": apart}
    return document


def evaluated(
    detector: Detector, data: str | Path, contract: InputContract
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation of a val split, and scores of masks."""
    module = detector.module
    loaded = folder_data(data, contract, module)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                      enable_checkpointing=False, use_distributed_sampler=False, devices=1)  # fmt: skip
    refuse_other_labels(Subject(detector.name, module, loaded, trainer))
    trainer.validate(module, datamodule=loaded, verbose=False)
    return module.val_ap.evaluation(), mask_scores(module, loaded.label_map)
