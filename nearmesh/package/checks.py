"""What is wrong between the sections of a model.toml, each of which is right by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nearmesh.config import Problem
from nearmesh.errors import InvalidInput
from nearmesh.ids import RESERVED_FILE, check_label, check_version
from nearmesh.package.tensor_spec import TensorSpec, fits

if TYPE_CHECKING:
    from nearmesh.package.package import Package

# More engine calls at a time than any machine has cores.
MAX_INSTANCES = 256


def problems(package: Package) -> Iterator[Problem]:
    """All of them, with the keys that they are about."""
    yield from _names(package)
    yield from _numbers(package)
    yield from _twice("inputs", package.inputs)
    yield from _twice("outputs", package.outputs)
    yield from _state(package)
    yield from _axes(package)
    yield from _steps(package)
    yield from _quantize(package)
    yield from _judged(package)
    yield from _training(package)
    yield from _files(package)


def _names(package: Package) -> Iterator[Problem]:
    try:
        check_label("model", package.name)
    except InvalidInput as error:
        yield Problem(("name",), error.message)
    try:
        check_version(package.version)
    except InvalidInput as error:
        yield Problem(("version",), error.message)
    if not package.inputs or not package.outputs or not (package.variants or package.steps):
        said = "a package needs at least one of each of [[inputs]], [[outputs]] and [[variants]]"
        empty = next((key for key in ("inputs", "outputs", "variants") if not getattr(package, key)), "variants")
        yield Problem((empty,), said)


def _numbers(package: Package) -> Iterator[Problem]:
    if not 0 <= package.instances <= MAX_INSTANCES:
        said = f"instances must be 0 (as many as suit the machine) to {MAX_INSTANCES}, got {package.instances}"
        yield Problem(("instances",), said)
    for key, value in (("queue", package.queue), ("memory_bytes", package.memory_bytes)):
        if value < 0:
            said = f"queue and memory_bytes are 0 or more, got {package.queue} and {package.memory_bytes}"
            yield Problem((key,), said)
    if package.route.deadline_ms <= 0:
        said = f"route.deadline_ms must be above 0, got {package.route.deadline_ms:g}"
        yield Problem(("route", "deadline_ms"), said)


def _twice(key: str, specs: tuple[TensorSpec, ...]) -> Iterator[Problem]:
    names = [spec.name for spec in specs]
    for position, name in enumerate(names):
        if name in names[:position]:
            yield Problem((key, position), f"{key.removesuffix('s')} {name!r} is described twice")


def _state(package: Package) -> Iterator[Problem]:
    inputs, outputs = {i.name: i for i in package.inputs}, {o.name: o for o in package.outputs}
    for position, state in enumerate(package.sequence.state if package.sequence else ()):
        at = ("sequence", "state", position)
        if state.input not in inputs or state.output not in outputs:
            said = f"sequence state {state.input!r} -> {state.output!r}: no such input or output"
            yield Problem((*at, "output" if state.input in inputs else "input"), said)
            continue
        goes_in, comes_out = inputs[state.input], outputs[state.output]
        if not fits(state.shape, goes_in.shape):
            said = f"sequence state {state.input!r} has shape {list(state.shape)}, the input {list(goes_in.shape)}"
            yield Problem((*at, "shape"), said)
        if not fits(comes_out.shape, goes_in.shape):
            yield Problem(
                at,
                f"sequence state: the output {state.output!r} has shape {list(comes_out.shape)}, the input "
                f"{state.input!r} {list(goes_in.shape)}",
            )
        if not state.dtype == goes_in.dtype == comes_out.dtype:
            yield Problem(
                (*at, "dtype"),
                f"sequence state {state.input!r} is {state.dtype}, the input is {goes_in.dtype} and the output "
                f"{state.output!r} {comes_out.dtype}; expected one dtype",
            )


def _axes(package: Package) -> Iterator[Problem]:
    pad = package.batching.pad
    named = {name for spec in package.inputs for name in spec.axes if name}
    for position, name in enumerate(pad):
        if name not in named:
            said = f"batching.pad names the axis {name!r}; the inputs' axes are {sorted(named)}"
            yield Problem(("batching", "pad", position), said)
    for spec in package.inputs:
        if spec.axes and 0 <= spec.batch_axis < len(spec.axes) and spec.axes[spec.batch_axis] in pad:
            yield Problem(
                ("batching", "pad"),
                f"batching.pad names {spec.axes[spec.batch_axis]!r}, the batch axis of {spec.name!r}: that one is "
                "joined, never filled up; name another axis",
            )
    if package.batching.max_batch:
        yield from _batch_axes(package)


def _batch_axes(package: Package) -> Iterator[Problem]:
    for key, specs in (("inputs", package.inputs), ("outputs", package.outputs)):
        for position, spec in enumerate(specs):
            if spec.batch_axis >= len(spec.shape):
                said = f"{spec.name!r} has {len(spec.shape)} dimensions, its batch_axis is {spec.batch_axis}"
                yield Problem((key, position, "batch_axis"), said)
            elif spec.batch_axis < 0 and key == "outputs":
                said = f"output {spec.name!r} needs a batch_axis: the rows of a call are shared out along it"
                yield Problem((key, position, "batch_axis"), said)


def _steps(package: Package) -> Iterator[Problem]:
    names = [step.name for step in package.steps]
    for position, name in enumerate(names):
        if name in names[:position]:
            yield Problem(("steps", position, "name"), f"two steps have the same name, {name!r}")
    graphs = _graphs(package)
    for position, variant in enumerate(package.variants):
        if variant.step not in graphs:
            said = f"variant {variant.name!r} is for the step {variant.step!r}; graphs: {sorted(graphs)}"
            yield Problem(("variants", position, "step"), said)
    for missing in sorted(graphs - {variant.step for variant in package.variants}):
        if package.variants or package.steps:
            at = ("steps", names.index(missing)) if missing in names else ("variants",)
            yield Problem(at, f"step {missing!r} has neither `python` nor `retrieve` nor a variant")
    if package.assets and not any(step.python for step in package.steps):
        yield Problem(("assets",), "[[assets]] are for functions, and no step has one (`python`)")
    if package.decoupled and not (package.steps and package.steps[-1].python):
        yield Problem(("decoupled",), "a decoupled model ends with a `python` step, which yields its answers")


def _graphs(package: Package) -> set[str]:
    """Names of the steps that variants are for; a package without steps is one graph, without a name."""
    return {step.name for step in package.steps if step.is_graph} if package.steps else {""}


def _quantize(package: Package) -> Iterator[Problem]:
    graphs = _graphs(package)
    known = {(variant.step, variant.name) for variant in package.variants}
    for position, made in enumerate(package.quantize):
        at = ("quantize", position)
        if made.step not in graphs:
            said = f"quantize {made.variant!r} is for the step {made.step!r}; graphs: {sorted(graphs)}"
            yield Problem((*at, "step"), said)
        elif made.of and (made.step, made.of) not in known:
            there = sorted(name for step, name in known if step == made.step)
            said = f"quantize {made.variant!r} is made of {made.of!r}; the variants before it are {there}"
            yield Problem((*at, "of"), said)
        if (made.step, made.variant) in known:
            yield Problem((*at, "variant"), f"quantize {made.variant!r}: there is a variant of that name already")
        known.add((made.step, made.variant))


def _judged(package: Package) -> Iterator[Problem]:
    evaluation, check = package.evaluation, package.online_check
    if evaluation is not None:
        numeric = evaluation.metric in ("accuracy", "cosine")
        yield from _output(package, "evaluation", evaluation.output, evaluation.metric if numeric else "")
    if check is not None:
        yield from _output(package, "online_check", check.output, check.agree if check.agree != "close" else "")


def _training(package: Package) -> Iterator[Problem]:
    training = package.training
    if training is None:
        return
    if package.sequence is not None:
        said = "training: rounds do not train a package with [sequence] yet; leave one of the two out"
        yield Problem(("training",), said)
    step, name = training.step, training.variant
    given = package.given(step)
    if step not in _graphs(package) or not given:
        said = f"training.step is {step!r}; graphs: {sorted(_graphs(package))}"
        yield Problem(("training", "step" if step else "variant"), said)
        return
    if name and name not in {variant.name for variant in given}:
        there = ", ".join(repr(variant.name) for variant in given)
        why = "; it is made, and rounds train what is given" * (name in {made.variant for made in package.quantize})
        yield Problem(("training", "variant"), f"training.variant is {name!r}{why}; given are {there}")
        return
    trained = package.trained
    assert trained is not None
    for other in given:
        if other != trained:
            said = (
                f"training: variant {other.name!r} is given, and would keep its parameters when {trained.name!r} has "
                "been trained; have it made ([[quantize]]) or leave it out"
            )
            yield Problem(("training",), said)
    if trained.engine != "onnxruntime" or trained.external:
        said = f"training: {trained.name!r} has to be one ONNX file for ONNX Runtime, which sites are sent to judge it"
        yield Problem(("training", "variant") if name else ("training",), said)


def _output(package: Package, section: str, name: str | None, ranked: str) -> Iterator[Problem]:
    """Whether a section's output is there and, where it is `ranked`, has numbers along an axis."""
    outputs = {spec.name: spec for spec in package.outputs}
    at = (section, "output") if name is not None else (section,)
    if name is None:
        name = next(iter(outputs), "")
    if name not in outputs:
        if outputs:
            yield Problem(at, f"{section}.output is {name!r}; the outputs are {', '.join(map(repr, outputs))}")
        return
    spec = outputs[name]
    if ranked and (spec.dtype == "BYTES" or not spec.shape):
        has = f"{spec.dtype} {list(spec.shape)}"
        yield Problem(at, f"{section}: {ranked} needs an output with numbers along an axis, {name!r} is {has}")


def _files(package: Package) -> Iterator[Problem]:
    # A node opens them in the version's own folder, whose files it has checked.
    told: set[str] = set()
    for at, name in package.named_files():
        if name in told:
            continue
        told.add(name)
        if not is_plain_name(name):
            yield Problem(at, f"{name!r}: the package's files lie beside model.toml, without folders")
        elif name == RESERVED_FILE:
            yield Problem(at, f"{name!r}: nodes keep a file of that name themselves; give it another one")


def is_plain_name(name: str) -> bool:
    """Whether it can only name a file of the package's own folder."""
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\\0")
