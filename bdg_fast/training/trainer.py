"""One loop over the stages of a run, which goes on exactly where it stopped."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bdg_fast.kernels.pixelwise import derived_seeds
from bdg_fast.ranks import Ranks, ranks

from ..backends import default_device
from ..data.degrade import sent
from ..files import write_atomically
from ..models import Backbone
from ..models.checkpoints import CheckpointError, save_backbone
from ..sampler import ResidualSampler
from . import checkpoint
from .config import TrainConfig
from .config_stage import Stage
from .data import Source, validated_by
from .inputs import Inputs
from .latents import Latents
from .log import RunLog
from .optim import Average, learning_rate, load_moments, make_optimizer, moments
from .parallel import Forward, Parallel, limit, whole_unet
from .prefetch import prefetched
from .settings import as_dict, completed, differences
from .signals import SIGNALS, StopRequest
from .stages import Parts, StageModule
from .trackers import require_trackers
from .validate import HeldOut, count_of, measured

CONFIG, CHECKPOINTS, BEST, LAST = "config.json", "checkpoints", "best", "network"
"""In a run's folder: its settings, its checkpoints, the averaged networks of the best validation and of the end."""


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite; the message says which, at which step, and of which images."""


class Result(NamedTuple):
    """Where a run stands."""

    step: int  # of all stages together
    finished: bool
    skipped: int  # steps whose loss or gradient was not finite
    best: float | None  # PSNR in dB of the last validated stage's best averaged network
    unreadable: int = 0  # reads of images that failed since it went on, each replaced by another image


class Trainer:
    """Trains by settings.

    A folder that holds checkpoints is gone on with from the newest whole one; on a CPU every later loss is then equal
    to the bit to that of a run that was never stopped.

    Args:
        config: of the run.
        source: images, instead of those that ``config.data`` names.
        quiet: nothing on the terminal.
        allow_changes: go on although settings that results depend on have changed since the run began.

    Raises:
        ValueError: settings that do not fit the images, the number of processes, or the run in the folder, by name.
        ImportError: TensorBoard or Weights & Biases is asked for and not installed. FileNotFoundError: no images.
    """

    def __init__(
        self, config: TrainConfig, *, source: Source | None = None, quiet: bool = False, allow_changes: bool = False
    ) -> None:
        """Check what can be checked before the network is built."""
        self.config, self.quiet, self.allow_changes = config, quiet, allow_changes
        require_trackers(config.log.tensorboard, config.log.wandb)
        self.folder = Path(config.output)
        self.source = validated_by(config, source)
        self.classes = self.source.classes or config.data.classes
        for name, stage in config.active.items():
            if "classification" in stage.losses.weights and len(self.classes) < 2:
                raise ValueError(f"stages.{name}.losses.classification must be 0: the images have one class")
            if self.source.classes and (given := stage.drawing.given):
                raise ValueError(f"stages.{name}.{given[0]} must not be given: the images are degraded already")
        self._check_folder()

    def _check_folder(self) -> None:
        path = self.folder / CONFIG
        if not path.exists():
            return
        old = completed(json.loads(path.read_text(encoding="utf-8")), self.config)
        changed = differences(old, as_dict(self.config))
        if changed and not self.allow_changes:
            raise ValueError(
                f"{', '.join(changed)} differ from those of the run in {self.folder}: "
                "give another output, or allow changes"
            )

    def run(self, until: int | None = None, stop: StopRequest | None = None) -> Result:
        """Train to the end, or to step ``until`` (of all stages together), where nothing is saved.

        Args:
            until: the last step.
            stop: looked at in every step: when one process has been asked, all save and return after the same step, and
                ``stop.agreed`` is set. No signal is handled unless the caller does (`signals.stop_on_signals`).

        Raises:
            NonFiniteError: a loss or gradient was not finite, by ``config.non_finite``. CheckpointError: checkpoints
                are there, and none is whole, or the newest is another version's. OSError: a checkpoint could not be
                written (older ones are whole), or the newest cannot be read at the moment (and stays).
            ValueError: a stage's ``batch`` cannot be shared out among the processes, or the number of processes, of
                shards, or of images has changed. RuntimeError: another run is in the folder.
        """
        device = default_device() if self.config.device == "auto" else self.config.device
        with ranks(device) as found:
            for name, stage in self.config.active.items():
                each = found.world * stage.accumulate
                if stage.batch % each:
                    raise ValueError(
                        f"stages.{name}.batch must be a multiple of {each} (processes by accumulated parts), "
                        f"got {stage.batch}"
                    )
            with checkpoint.claimed(self.folder, found):
                return _Run(self, found, stop or StopRequest()).train(until)


@dataclass(frozen=True)
class _Active:
    """The stage that is being trained."""

    name: str
    stage: Stage
    first: int  # step that it begins at
    module: StageModule
    forward: Forward  # of it, by all processes
    optimizer: torch.optim.Optimizer
    used: Mapping[str, nn.Parameter]
    own: Mapping[str, nn.Parameter]  # what this process updates of them
    inputs: Inputs
    stop: int  # step that nothing is read for


class _Run:
    """State of a run in one process. ``step`` counts the finished ones of all stages."""

    def __init__(self, trainer: Trainer, ranks: Ranks, stop: StopRequest) -> None:
        self.config, self.source, self.classes = trainer.config, trainer.source, trainer.classes
        self.folder, self.ranks, self.stop = trainer.folder, ranks, stop
        self.root = self.folder / CHECKPOINTS
        self.latents = Latents.of(self.config, ranks.device)
        self.parts = Parts(self.config, len(self.classes)).to(ranks.device)
        self.average = Average(self.parts.unet, self.config.ema)
        count = count_of(self.source)
        self.counters: dict[str, Any] = {
            "step": 0, "updates": 0, "skipped": 0, "skipped_in_a_row": 0, "world": ranks.world,
            "best": None, "best_step": None, "best_stage": None, "images": count,
            "measured": measured(self.config, count),
        }  # fmt: skip
        self.optimizer_state: Mapping[str, Tensor] = {}
        self.unreadable = 0  # reads that failed, of all processes
        problems = self._resume(trainer.allow_changes)
        self.parallel = Parallel(self.parts, ranks, self.config.parallel)
        self.parallel.shard(self.average.unet)
        if ranks.device.type == "cuda" and not self.parallel.sharded:  # FSDP takes contiguous weights alone
            for module in (self.parts, self.average.unet):
                module.to(memory_format=torch.channels_last)
        self.held_out = self._validation()
        self.log: RunLog | None = None
        self.last = sum(stage.steps for stage in self.config.active.values())
        if ranks.first:
            text = json.dumps(as_dict(self.config), indent=1)
            write_atomically(self.folder / CONFIG, lambda file: file.write_text(text + "\n", encoding="utf-8"))
            if self.latents is not None:
                self.latents.save(self.folder, copy=False)
            self.log = RunLog(self.folder, self.step, self.config, trainer.quiet)
            for each in problems:
                self.log.say(f"passed over: {each}")
            if self.step:
                state = "goes on" if self.step < self.last else "was finished"
                self.log.say(f"{self.folder}: {state} after step {self.step}")

    @property
    def step(self) -> int:
        step: int = self.counters["step"]
        return step

    def _resume(self, allow_changes: bool) -> list[str]:
        """Go on with the newest whole checkpoint, if one is there; returns what was wrong with newer ones."""
        saved, problems = checkpoint.newest(self.root, self.ranks)
        if saved is None:
            if self.config.init is not None:
                checkpoint.begin_with(self.config.init, self.parts.unet, self.average.unet)
            return problems
        own, before = self.counters, self.counters | saved.state
        if before["world"] != own["world"] and getattr(self.source, "by_ranks", False):
            world = own["world"]
            raise ValueError(
                f"shards are read as {before['world']} processes began to, of {saved.folder}: {world} cannot go on"
            )
        known = None not in (before["images"], own["images"])  # by both sources
        if known and before["images"] != own["images"] and not allow_changes:  # another order
            raise ValueError(
                f"the run in {self.folder} was trained on {before['images']} images, and {own['images']} are there: "
                "give another output, or allow changes"
            )
        for module, tensors in ((self.parts, saved.parts), (self.average.unet, saved.network)):
            try:
                module.load_state_dict(tensors)
            except RuntimeError as error:
                raise CheckpointError(f"{saved.folder} does not fit the settings: {error}") from None
        self.counters = before | {each: own[each] for each in ("world", "images", "measured")}
        if before["measured"] != own["measured"]:  # scores of other images are not to be compared
            self.counters |= {"best": None, "best_step": None, "best_stage": None}
        self.optimizer_state = saved.optimizer
        return problems

    def _validation(self) -> HeldOut | None:
        settings = self.config.validation
        if not settings.every:
            return None
        batch = self.source.held_out(settings.crop)
        names = self.config.data.degradations
        return None if batch is None else HeldOut(batch, names, self.ranks, settings.pictures, self.latents)

    def train(self, until: int | None) -> Result:
        end = self.last if until is None else min(until, self.last)
        try:
            first = 0
            for index, (name, stage) in enumerate(self.config.active.items()):
                if first + stage.steps > self.step < end and not self.stop.agreed:
                    self._train_stage(index, name, stage, first, end)
                first += stage.steps
            if self.step == self.last:
                self._export(LAST)
        finally:
            if self.log is not None:
                self.log.close()
        if self.stop.agreed:  # launchers end all processes when one has left: not before everything is written
            self.ranks.wait()
        counters = self.counters
        return Result(self.step, self.step == self.last, counters["skipped"], counters["best"], self.unreadable)

    def _train_stage(self, index: int, name: str, stage: Stage, first: int, end: int) -> None:
        """Steps ``self.step`` to the end of the stage that begins at ``first``, but none from ``end``."""
        config, world = self.config, self.ranks.world
        used = self.parts.trained(stage)
        for full, parameter in self.parts.named_parameters():
            parameter.requires_grad_(full in used).grad = None
        own = self.parallel.own(used)
        optimizer = make_optimizer(own, config.optimizer, stage.lr)
        if self.step > first:
            load_moments(optimizer, used, own, self.optimizer_state)
            self.optimizer_state = {}
        module = StageModule(self.parts, config, stage, self.ranks.device)
        batches = self.source.batches(
            batch=stage.batch // (world * stage.accumulate),
            crop=stage.crop,
            rank=self.ranks.rank,
            world=world,
            start=(self.step - first) * stage.accumulate,
            seed=int(derived_seeds(torch.tensor([config.seed]), index)),
        )
        with contextlib.closing(prefetched(iter(batches), self.ranks.device)) as ahead:
            inputs = Inputs(config, stage, self.source, ahead, self.latents, self.ranks.device)
            forward, stop = self.parallel.forward_of(module), min(first + stage.steps, end)
            self._steps(_Active(name, stage, first, module, forward, optimizer, used, own, inputs, stop))

    def _steps(self, now: _Active) -> None:
        config, stage, seconds, since = self.config, now.stage, 0.0, self.step
        while self.step < now.stop and not self.stop.agreed:
            began = time.perf_counter()
            lr = learning_rate(stage, self.step - now.first)
            for group in now.optimizer.param_groups:
                group["lr"] = lr
            values = self._step(now)
            self.counters["step"] += 1
            seconds += time.perf_counter() - began
            ending = self.step == now.first + stage.steps
            if self.log is not None and (self.step % config.log.every == 0 or ending):
                speed = stage.batch * (self.step - since) / seconds
                more = {"unreadable": self.unreadable} if self.unreadable else {}
                self.log.numbers(self.step, now.name, {**values, "lr": lr, "images_per_s": speed, **more})
                seconds, since = 0.0, self.step
            if self.held_out and (ending or self.step % config.validation.every == 0):
                self._validate(now.name, stage)
            if ending or self.stop.agreed or self.step % config.checkpoint.every == 0:
                self._save(moments(now.optimizer, now.used, now.own))

    def _step(self, now: _Active) -> dict[str, float]:
        """One step: terms of its loss, and the norm of its gradient before it is limited."""
        stage, names, device = now.stage, now.module.names, self.ranks.device
        for parameter in (*now.used.values(), *now.own.values()):  # shards are others than what they are of
            parameter.grad = None
        terms = torch.zeros(len(names), device=device)
        numbers: list[int] = []
        for part in range(stage.accumulate):
            given = now.inputs.take(self.step)
            numbers += given.numbers
            with contextlib.ExitStack() as around:
                if part + 1 < stage.accumulate:
                    around.enter_context(self.parallel.alone(now.forward))
                with torch.autocast(device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
                    found = now.forward(*given.pair, given.seeds, self.step, *given.seen)
                torch.autograd.backward(found["loss"] / stage.accumulate)
            terms += torch.stack([found[each].detach().float() for each in names]) / stage.accumulate
        gradients = self.parallel.gradients(now.used, now.own)
        norm = self.parallel.norm(gradients.values())
        if self.step + 1 < now.stop and not self.stop.asked:
            now.inputs.begin(self.step + 1)  # before anything waits for the device
        own = [float(self.stop.asked == each) for each in SIGNALS] + [float(getattr(self.source, "unreadable", 0))]
        reduced = self.ranks.mean(torch.cat((terms, sent(torch.tensor(own), device))))  # so that all stop alike
        *means, terminate, interrupt, unreadable, size = torch.cat((reduced, norm.float().view(1))).tolist()
        self.unreadable = round(unreadable * self.ranks.world)
        self.stop.agreed = next((each for each, x in zip(SIGNALS, (terminate, interrupt), strict=True) if x), 0)
        values = {**dict(zip(names, means, strict=True)), "gradient": size}
        bad = [each for each, value in values.items() if not math.isfinite(value)]
        if bad:
            self._not_finite(now, terms, gradients, numbers, bad)
        else:
            if self.config.optimizer.clip:
                limit(gradients.values(), self.config.optimizer.clip, norm)
            now.optimizer.step()
            self.average.update(self.parts.unet, self.counters["updates"])
            self.counters["updates"] += 1
            self.counters["skipped_in_a_row"] = 0
        return values

    def _not_finite(
        self, now: _Active, terms: Tensor, gradients: Mapping[str, Tensor], numbers: list[int], bad: list[str]
    ) -> None:
        """Stop, or count a skipped step. Every rank comes here if one does, as all see the same means."""
        images = ", ".join(dict.fromkeys(map(self.source.name, numbers)))
        if bad == ["gradient"]:
            mine = [full for full, gradient in gradients.items() if not bool(gradient.isfinite().all())]
            broken = [full for each in self.ranks.collected(mine) for full in each]
            images = ", ".join(dict.fromkeys(self.ranks.collected(images)))  # a gradient is that of all
            where = f"; of {broken[0] if broken else 'no single parameter'}, with the images {images}"
        else:
            mine = [each for each, x in zip(now.module.names, terms.tolist(), strict=True) if not math.isfinite(x)]
            told = f"; on process {self.ranks.rank}: {', '.join(mine)} of the images {images}" if mine else ""
            where = "".join(self.ranks.collected(told))
        message = f"step {self.step + 1} of stage {now.name}: {', '.join(bad)} not finite{where}"
        self.counters["skipped"] += 1
        self.counters["skipped_in_a_row"] += 1
        if self.config.non_finite == "stop":
            raise NonFiniteError(message)
        if self.counters["skipped_in_a_row"] > self.config.most_skipped:
            raise NonFiniteError(f"{message}; {self.config.most_skipped} steps before it were skipped for that already")
        if self.log is not None:
            self.log.say(f"skipped {message}")

    def _validate(self, name: str, stage: Stage) -> None:
        if self.held_out is None or stage.coefficients == "generation" or stage.reads_only:
            return
        unet = whole_unet(self.average.unet)
        whole = ResidualSampler.of(unet.config, self.config.validation.steps)
        sampler = replace(whole, schedule=whole.schedule.stage(stage.coefficients))
        scores = self.held_out.score(unet, sampler)
        counters = self.counters
        if counters["best_stage"] != name or counters["best"] is None or scores.psnr > counters["best"]:
            counters |= {"best": scores.psnr, "best_step": self.step, "best_stage": name}
            if self.ranks.first:
                self._write(unet, BEST)
        if self.log is not None:
            self.log.numbers(self.step, name, scores.numbers)
            if scores.picture is not None:
                self.log.picture(self.step, scores.picture)

    def _save(self, optimizer: Mapping[str, Tensor]) -> None:
        parts, optimizer = (self.parallel.gathered(each) for each in (self.parts.state_dict(), optimizer))
        unet = whole_unet(self.average.unet)
        if self.ranks.first:
            checkpoint.save(self.root, self.counters, parts, optimizer, unet)
            checkpoint.prune(self.root, self.config.checkpoint.keep, self.counters["best_step"])

    def _export(self, name: str) -> None:
        unet = whole_unet(self.average.unet)
        if self.ranks.first:
            self._write(unet, name)

    def _write(self, unet: Backbone, name: str) -> None:
        save_backbone(unet, self.folder / name)
        if self.latents is not None:
            self.latents.save(self.folder / name)
