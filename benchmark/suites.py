"""The suites: which cases answer which question."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from typing import Any

import torch
from tqdm import tqdm

from benchmark import attention, exponents, growth, memory, neighbour, reference, report
from benchmark.cases import METHODS, UNCOMPILED_FORMS, Workshop, step_cases
from benchmark.timing import Case, Label, Work, measure
from scm.config.schema import Precision
from scm.core.errors import UserError
from scm.core.machine import find_dtype

SCALED = ("diffusion", "sct dual")  # the steps of the suite on the seed
SEED = Label("unet_mobile", Precision.fp32.name, batch_size=0, case="sct naive")
IMAGES, RUNS = 10_000, 500  # of the sampling and the report suite


@dataclass(frozen=True)
class Request:
    """What the user asks for; None: the suite's own choice."""

    workshop: Workshop
    device: torch.device
    models: list[str] | None
    precisions: list[Precision] | None
    batch_sizes: list[int] | None
    forms: list[str]  # of the tangent
    compile_modes: list[str]  # beside eager
    rounds: int
    n: int | None  # images to sample, or runs to report


class Suite(ABC):
    """One question. What a user leaves open is the class's to choose."""

    question: str
    models: tuple[str, ...] = ("unet",)
    precisions: tuple[Precision, ...] = (Precision.auto,)
    batch_sizes: tuple[int, ...] = (128,)

    def __init__(self, request: Request) -> None:
        self.request = request
        self.workshop = request.workshop

    @abstractmethod
    def rows(self) -> list[report.Row]:
        """Measure; one row per case."""

    def labels(self) -> Iterator[Label]:
        """One per model, precision and batch size, without a case."""
        request = self.request
        for model, precision, batch_size in product(
            request.models or self.models,
            self.resolved_precisions(),
            request.batch_sizes or self.batch_sizes,
        ):
            yield Label(model, precision.name, batch_size, case="")

    def resolved_precisions(self) -> list[Precision]:
        """The precisions to measure, none of them `auto`, each once."""
        chosen = self.request.precisions or self.precisions
        dtypes = [find_dtype(precision.name, self.request.device) for precision in chosen]
        names = {torch.bfloat16: Precision.bf16, torch.float32: Precision.fp32}
        return list(dict.fromkeys(names[dtype] for dtype in dtypes))

    def timed(self, cases: Iterable[Case]) -> list[report.Row]:
        """Time the cases side by side."""
        timings = measure(cases, rounds=self.request.rounds, device=self.request.device)
        return report.timed_rows(timings)

    def step(self, label: Label, case: str, **more: Any) -> Case:
        """A training step as a case."""
        label = replace(label, case=case, **more)
        return Case(label, partial(self.workshop.step, label))


class StepSuite(Suite):
    """Forward pass and training steps, beside what the device reaches at most."""

    question = "what a training step costs, by objective, tangent and model"
    models = ("unet", "unet_small", "unet_attention", "dit", "unet_mobile")
    precisions = (Precision.fp32, Precision.bf16)

    def rows(self) -> list[report.Row]:
        return self.timed(self._cases())

    def _cases(self) -> Iterator[Case]:
        for precision in self.resolved_precisions():
            yield from reference.cases(precision, self.request.device)
        for label in self.labels():
            for mode in ("", *self.request.compile_modes):
                forms = [f for f in self.request.forms if not (mode and f in UNCOMPILED_FORMS)]
                if not mode:  # what is compiled are training's passes
                    forward = replace(label, case="forward")
                    yield Case(forward, partial(self.workshop.forward, forward))
                for case in step_cases(forms):
                    yield self.step(label, case, compiled=mode)


class MethodsSuite(Suite):
    """A step of every method, beside what it computes."""

    question = "what a step of each method costs, and how far that is from its passes"

    def rows(self) -> list[report.Row]:
        rows = self.timed(self.step(label, case) for label in self.labels() for case in METHODS)
        report.add_passes(rows)
        return rows


class SeedSuite(Suite):
    """Today's step beside what the project began with: its network, its tangent, its precision."""

    question = "how many times the images/s of the starting scripts' network and tangent"

    def rows(self) -> list[report.Row]:
        rows = self.timed(self._cases())
        report.add_speedups(rows, reference=SEED.case)
        return rows

    def _cases(self) -> Iterator[Case]:
        for batch_size in dict.fromkeys(label.batch_size for label in self.labels()):
            seed = replace(SEED, batch_size=batch_size)
            for case in ("diffusion", SEED.case):
                yield self.step(seed, case)
        for label, case in product(self.labels(), SCALED):
            yield self.step(label, case)


class SamplingSuite(Suite):
    """Images from noise. Heun's scheme, 35 times the work, draws a tenth as many."""

    question = "how long n images take, in one step and by Heun's scheme"
    batch_sizes = (256,)

    def rows(self) -> list[report.Row]:
        return self.timed(self._cases())

    def _cases(self) -> Iterator[Case]:
        n = self.request.n or IMAGES
        for label, (name, count) in product(
            self.labels(), {"one_step": n, "heun": max(1, n // 10)}.items()
        ):
            named = replace(label, case=f"{name}, {count:,} images")
            yield Case(named, partial(self.workshop.sampling, named, name, count))


class DataSuite(Suite):
    """What feeds a step, beside the step."""

    question = "whether the data keep up with the step"

    def rows(self) -> list[report.Row]:
        return self.timed(self._cases())

    def _cases(self) -> Iterator[Case]:
        for label in self.labels():
            batch, draw = replace(label, case="batch"), replace(label, case="batch, noise, times")
            yield Case(batch, partial(self.workshop.batch, batch))
            yield Case(draw, partial(self.workshop.draw, draw))
            yield self.step(label, "diffusion")


class ScalingSuite(Suite):
    """A step, and the drawing of a batch, as one thing after the other is made larger."""

    question = "how time and memory grow with batch, width, image size, images, threads"
    models = ("unet_small",)
    batch_sizes = (16,)  # where another thing grows

    def rows(self) -> list[report.Row]:
        labels = [*self._grown()]
        shop, rows = self.workshop, self.timed(Case(one, self._build(one)) for one in labels)
        bar = tqdm(labels, unit="process")
        for row, label in zip(rows, bar, strict=True):
            if label.case != growth.ORDER and not row["error"]:
                device = self.request.device.type
                found = memory.measure(label, device=device, overrides=shop.overrides)
                row["above_bytes"] = found.above
        return [*rows, *exponents.exponent_rows(rows), *self.timed(self._threads())]

    def _build(self, label: Label) -> Callable[[], Work]:
        work = self.workshop.random_batch if label.grows == growth.IMAGES else self.workshop.step
        return partial(work, label)

    def _grown(self) -> Iterator[Label]:
        """Each axis in turn, the others as they stand in the config and at the usual batch size."""
        labels = list(self.labels())
        for label, (grows, axis) in product(labels[:1], growth.AXES.items()):
            cases = (growth.DRAW, growth.ORDER) if grows == growth.IMAGES else (growth.STEP,)
            for case, at in product(cases, axis.values):
                batch_size = at if grows == growth.BATCH else label.batch_size
                yield replace(label, case=case, grows=grows, at=at, batch_size=batch_size)

    def _threads(self) -> Iterator[Case]:
        if self.request.device.type == "cpu":
            for label, threads in product(self.labels(), doublings(torch.get_num_threads())):
                yield self.step(label, growth.STEP, threads=threads)


class MemorySuite(Suite):
    """Peak memory of the training steps."""

    question = "peak memory of each training step, in a process of its own"

    def rows(self) -> list[report.Row]:
        labels = [
            replace(label, case=case)
            for label in self.labels()
            for case in step_cases(self.request.forms)
        ]
        shop, device = self.workshop, self.request.device.type
        bar = tqdm(labels, unit="process")
        return report.memory_rows(
            [memory.measure(label, device=device, overrides=shop.overrides) for label in bar]
        )


class AttentionSuite(Suite):
    """Attention by itself: value and tangent, and the value's gradient."""

    question = "what attention and its tangent cost, by length and how it is computed"
    precisions = (Precision.fp32, Precision.bf16)

    def rows(self) -> list[report.Row]:
        device = self.request.device
        lengths = [
            list(group)
            for precision in self.resolved_precisions()
            for _, group in groupby(attention.labels(precision.name), lambda label: label.tokens)
        ]
        each = [(label, p) for labels in lengths for label, p in product(labels, attention.PASSES)]
        timings = measure(
            (
                Case(
                    replace(label, case=f"{label.case}, {passes}"),
                    partial(attention.work, label, passes, device),
                )
                for label, passes in each
            ),
            rounds=self.request.rounds,
            device=device,
        )
        bar = tqdm(lengths, unit="process")
        memories = [memory for labels in bar for memory in attention.measure(labels, device)]
        return report.attention_rows(each, timings, memories)


class NeighbourSuite(Suite):
    """A training step alone and beside a busy process, by how torch's threads wait."""

    question = "what a busy neighbour costs a step, by how threads wait (CPU)"

    def rows(self) -> list[report.Row]:
        if self.request.device.type != "cpu":
            raise UserError("--suite neighbour: about the threads of a CPU; use --device cpu")
        rows: list[report.Row] = []
        for label in self.labels():
            step = replace(label, case="sct dual")
            seconds: dict[str, list[float]] = {}
            for _ in tqdm(range(self.request.rounds), unit="round"):
                for wait, busy in product(neighbour.WAITS, (0, 1)):
                    with neighbour.neighbours(busy):
                        second = neighbour.seconds(step, wait, overrides=self.workshop.overrides)
                    case = f"{wait}, {'beside a busy process' if busy else 'alone'}"
                    seconds.setdefault(case, []).append(second)
            rows += report.neighbour_rows(label, seconds)
        return rows


class ReportSuite(Suite):
    """The report of a sweep of many runs."""

    question = "how long `python -m scm report` takes for n runs"

    def rows(self) -> list[report.Row]:
        n = self.request.n or RUNS
        label = Label(model="", precision="", batch_size=0, case=f"report of {n:,} runs")
        return self.timed([Case(label, partial(self.workshop.report, n))])


SUITES: dict[str, type[Suite]] = {
    "step": StepSuite,
    "methods": MethodsSuite,
    "seed": SeedSuite,
    "sampling": SamplingSuite,
    "data": DataSuite,
    "scaling": ScalingSuite,
    "memory": MemorySuite,
    "attention": AttentionSuite,
    "neighbour": NeighbourSuite,
    "report": ReportSuite,
}


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]
