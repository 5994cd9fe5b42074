"""`zoo export`: a trained model as a file for other runtimes, and the certificate that both compute the same."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.outputs import require_writable
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.certificate import JSON_FILE, missing_told, readable, write_certificate
from zoo.exporting.compare import session_of
from zoo.exporting.onnx import exported
from zoo.exporting.saving import FILES, Form, facts_of_graph, learns, measured, save
from zoo.exporting.search import Certify
from zoo.exporting.transformers import export_transformers
from zoo.registry.hugging_face.folder import CONFIG_FILE, read_json
from zoo.runs.certify import certified, detections_lost, evaluated
from zoo.runs.console import Console, quoted
from zoo.runs.evaluate import parse_layers, refuse_other_labels, silent_trainer
from zoo.runs.export_images import CALIBRATED, COMPARED, ExportImages, export_images
from zoo.runs.finetune import ImageSize, parse_size
from zoo.runs.lightning import quiet
from zoo.runs.subject import Subject, load
from zoo.runtimes.facts import Precision
from zoo.runtimes.module import files_of, inputs_of
from zoo.runtimes.onnx import SUFFIX
from zoo.storage.staging import put_in_place, staged

Target = Literal["onnx", "openvino", "transformers"]


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
        output: new or empty folder; None: one under mlruns/exports, named after the model and the form.
        data: folder or address, on whose val split both are compared, and of whose train split 16 and 8 bits are
            learned; None: on made-up images, without AP.
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
    name = f"{Path(detector.name).stem.replace(':', '-')}-{to}"
    folder = Path("mlruns", "exports", name) if output is None else Path(output)
    refuse_used(folder)
    if to == "transformers":
        own = {"raw": raw, "image_size": image_size is not None, "decoder_layers": decoder_layers is not None}
        asked = [key for key, given in (own | {"precision": precision != "fp32"}).items() if given]
        if asked:
            raise ValueError(
                f"--{asked[0].replace('_', '-')} is not for --to transformers, which takes a model as it is"
            )
    if decoder_layers is not None:
        parse_layers(str(decoder_layers), detector.module)
    contract = contract_of(detector, image_size)
    images = export_images(detector, data, contract, learns(to, precision))
    if images.data is not None:
        refuse_other_labels(Subject(detector.name, detector.module, images.data, silent_trainer("cpu")))
    with staged(folder.absolute().parent) as staging, as_exported(detector, decoder_layers):
        once = None if data is None else functools.cache(functools.partial(evaluated, detector, images))
        certify = functools.partial(certified, detector, images=images, console=console, of_source=once)
        if to == "transformers":
            export_transformers(detector, staging)
            path, document = staging, certify(staging)
        else:
            console.say(
                f"export      {detector.name} to {to}, {precision}: the network is captured, which takes a minute"
            )
            graphs = exported(detector, contract, raw=raw, precision=precision, decoder_layers=decoder_layers)
            path, document = in_precision(detector, *graphs, to, precision, images, staging, certify, console)
        write_certificate(document, staging)
        if not document["passed"]:
            for file in files_of(path):
                file.unlink()
        put_in_place(staging, folder, lambda there: any(there.iterdir()))
    if contract.tiles is not None:
        console.say(
            f"tiles       {contract.tiles}: the file takes one view; zoo.load cuts images and merges as the model "
            "does, another program has to do it itself, with the whole image as a view too"
        )
    say(document, folder, console)
    return document


def in_precision(
    detector: Detector, whole: Any, graph: Any, to: Form, precision: Precision, images: ExportImages, folder: Path,
    certify: Certify, console: Console,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """A file in a folder and its certificate, which tells the time of the same file in float32 too."""
    if precision == "fp32":
        path = save(graph, to, folder, precision)
        return path, certify(path)
    with tempfile.TemporaryDirectory() as memory:
        certify = functools.partial(certify, full=save(graph, to, Path(memory), "fp32"))
        if not learns(to, precision):
            path = save(graph, to, folder, precision)
            return path, certify(path)
        singles = list(itertools.islice(images.calibration(), CALIBRATED))
        inputs = [inputs_of(facts_of_graph(graph), single) for single in singles]
        lost = detections_lost(detector, singles[:COMPARED])
        return measured(whole, graph, to, precision, inputs, folder, certify, lost, console.say)


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
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        path = next((path / name for name in FILES.values() if (path / name).is_file()), path / FILES["onnx"])
    opened = Detector.from_exported(path)
    facts = session_of(opened).facts
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
    form: Form = "onnx" if path.suffix == SUFFIX else "openvino"
    images = export_images(source, data, contract, learns(form, facts.precision))
    with as_exported(source, facts.decoder_layers):
        document = certified(source, path, images, console, opened=opened)
    beside = (path if path.is_dir() else path.parent) / JSON_FILE
    if beside.is_file() and read_json(beside, str(beside.parent)).get("files") != document["files"]:
        document["failures"].append(f"the file is not the one of the certificate beside it, {beside}")
        document["passed"] = False
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        write_certificate(document, Path(output))
    say(document, None if output is None else Path(output), console)
    return document


def refuse_used(folder: Path) -> None:
    """Raises ValueError where an export would be written over something."""
    require_writable(folder, "--output")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output names a folder")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not empty; give another --output")


def contract_of(source: Detector, image_size: ImageSize | None) -> InputContract:
    """The contract of the export, at another size if one is given."""
    if image_size is None:
        return source.input
    limits = source.module.limits_of(source.module.init_args)
    height, width = parse_size(image_size, source.input.resize, limits.multiple_of)
    if source.input.resize == "stretch":
        limits.refuse((height, width), source.name, "give a larger --image-size")
    return replace(source.input, size=(height, width))


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
        console.say(f"{what} {folder}{missing_told(document)}", red=not document["passed"])
