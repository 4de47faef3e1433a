"""``python -m benchmarks.ablation``: what each part of the training contributes, at equal compute.

Arms are settings that replace those of one base. Equal compute is the same number of optimizer steps of the same
batches and crops: steps of stages that an arm leaves out go to its restoration, but for those of (7) alone, which
evaluate no network. A step itself costs less where nothing reads fingerprints, and in generation; the measured seconds
of training stand beside the results.

    base                the encoder by (7) alone, then the three stages, residual head, a network that is told the
                        fingerprint, gray and residual; restoration trains the first time alone, and one step restores
    not told            the paper's: an encoder beside the network reads the fingerprint, for (6), (7) and (10) alone
    no fingerprint      the three stages without (6), (7) and (10): of the network alone
    no bridging stage   restoration has its steps, with (6), (7) and (10)
    no classification   without (7), before and in the stages
    both heads          residual and noise; (5) with lambda = 0.1 in restoration, where nothing else trains the noise
    DiffUIR             one stage, restoration, without fingerprints
    gray fingerprint    without the matrix of the high-pass residual
    three steps         restoration trains the times of three sampling steps, which restore
    all times           restoration trains all times, as published; three steps restore

An arm of one seed begins with the weights and sees the images that its number tells. Finished ones are kept in
``OUT/results.json`` and skipped; the same command goes on with what was interrupted, and with more arms or seeds. Given
twice at once, on a machine of several cores, the commands share the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from bdg_fast.backends import network_of
from bdg_fast.data.datasets import folder_at
from bdg_fast.data.images import bundled_photographs, list_images
from bdg_fast.files import held, sha256_of, write_atomically
from bdg_fast.models import Fingerprint, UNet
from bdg_fast.sampler import ResidualSampler
from bdg_fast.training import TrainConfig, Trainer, checkpoint, load_config
from bdg_fast.training.log import read_log
from bdg_fast.training.settings import as_dict, completed, differences
from bdg_fast.training.signals import StopRequest, stop_on_signals
from bdg_fast.training.stages import Parts
from bdg_fast.training.trainer import CHECKPOINTS, LAST

from .ablation_scores import LEARNT, Represent, bottleneck, readout, represented, scores
from .ablation_table import BASE, markdown

WITHOUT_BRIDGING_STAGE = "stages.bridging.steps=0"
NO_CONTRAST = ("stages.restoration.losses.bridging=0", "stages.restoration.losses.negative=0")
NO_ENCODER_STAGE = "stages.encoder.steps=0"
NO_CLASSIFICATION = (
    NO_ENCODER_STAGE,
    *(f"stages.{name}.losses.classification=0" for name in ("bridging", "restoration")),
)
NOT_TOLD = "network.condition=0"
ARMS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "not told": (NOT_TOLD,),
    "no fingerprint": (NOT_TOLD, "stages.bridging.losses.bridging=0", *NO_CLASSIFICATION, *NO_CONTRAST),
    "no bridging stage": (WITHOUT_BRIDGING_STAGE,),
    "no classification": NO_CLASSIFICATION,
    "both heads": ("network.heads=both", "stages.restoration.losses.generation=0.1"),
    "DiffUIR": (
        NOT_TOLD, NO_ENCODER_STAGE, "stages.generation.steps=0", WITHOUT_BRIDGING_STAGE,
        "stages.restoration.losses.classification=0", *NO_CONTRAST,
    ),
    "gray fingerprint": ("network.condition_residual=false",),
    "three steps": ("stages.restoration.sampler_steps=3", "network.sampler_steps=3"),
    "all times": ("stages.restoration.sampler_steps=0", "network.sampler_steps=3"),
}  # fmt: skip
"""Settings that an arm replaces."""
STAGES = ("encoder", "generation", "bridging", "restoration")
CONFIG = Path(__file__).parents[1] / "configs/ablation.yaml"
SAMPLED, SAMPLED_ARMS = (1, 3, 5, 10), ("three steps", "all times")
"""Numbers of sampling steps that some arms are also tried with."""
READ_OUT = 64
"""Training photographs, at most, that the readout of inner features knows."""
LAST_LINES = 4
"""Of the log, whose mean is the accuracy of (7) at the end: a batch alone is few images."""
RESULTS, TABLE = "results.json", "table.md"


def arm_config(
    config: Path, arm: str, seed: int, output: Path, scale: float = 1.0, more: Sequence[str] = ()
) -> TrainConfig:
    """Settings of an arm's run.

    Args:
        config: file of the base's settings.
        arm: of :data:`ARMS`.
        seed: of the run.
        output: its folder.
        scale: of all stages' steps and warmup.
        more: settings that all arms replace.

    Raises:
        ValueError: ``config`` has other stages than :data:`STAGES`, or is that of the arm already.
    """
    shared = [*more, f"seed={seed}", f"output={json.dumps(str(output))}"]
    base = load_config(config, shared)
    if tuple(base.active) != STAGES:
        raise ValueError(f"--config must have the stages {', '.join(STAGES)}, got {', '.join(base.active)}")
    own = ARMS[arm]
    steps = {name: max(1, round(stage.steps * scale)) for name, stage in base.active.items()}
    for name in STAGES:
        if f"stages.{name}.steps=0" in own:
            left = steps.pop(name)
            steps["restoration"] += 0 if base.stages[name].reads_only else left
    scaled = [f"stages.{name}.warmup={round(stage.warmup * scale)}" for name, stage in base.active.items()]
    scaled += [f"stages.{name}.steps={number}" for name, number in steps.items()]
    found = load_config(config, [*shared, *scaled, *own])
    if own and not differences(as_dict(load_config(config, [*shared, *scaled])), as_dict(found)):
        raise ValueError(f"--config must not have the settings of the arm {arm!r} already: {', '.join(own)}")
    return found


def digests(files: Iterable[Path]) -> dict[str, Path]:
    """Files by the SHA-256 of what they hold."""
    return {sha256_of(file): file for file in files}


def described(known: Mapping[str, Path]) -> str:
    """One digest of all."""
    return hashlib.sha256("".join(sorted(known)).encode()).hexdigest()


def training_seconds(lines: Sequence[Mapping[str, Any]], config: TrainConfig) -> dict[str, float]:
    """Seconds of each stage's steps by a run's log, however often it was interrupted."""
    seconds: dict[str, float] = {}
    last = 0
    for line in lines:
        if "images_per_s" in line:
            each = config.stages[line["stage"]].batch / line["images_per_s"]
            seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + each * (line["step"] - last)
            last = line["step"]
    return seconds


def trained_encoder(config: TrainConfig, unet: UNet) -> Represent | None:
    """The encoder's features of fingerprints at the end of a run; None if it has none."""
    if unet.condition is not None:
        return lambda x_lq, seeds: unet.condition.features(x_lq)
    if not config.uses_encoder:
        return None
    saved, problems = checkpoint.load(Path(config.output, CHECKPOINTS))
    if saved is None:
        raise ValueError(f"no checkpoint of {config.output} is whole: {'; '.join(problems)}")
    parts = Parts(config, len(config.data.classes))
    parts.load_state_dict(saved.parts)
    own = config.encoder
    fingerprint = Fingerprint(own.angles, own.scales, own.levels, residual=own.residual)
    encoder = parts.eval().encoder
    assert encoder is not None  # as the settings use it
    return lambda x_lq, seeds: encoder(fingerprint(x_lq))


def measured(
    config: TrainConfig, train: Sequence[Path], test: Sequence[Path], crop: int, sampled: Sequence[int]
) -> dict[str, Any]:
    """Everything that is told of a finished run."""
    unet = UNet.from_pretrained(Path(config.output, LAST)).eval().fold()
    # the CPU whatever the run's device: scores of all machines are of the same arithmetic
    _, network = network_of("auto", unet, torch.device("cpu"), torch.float32)
    kinds = config.data.degradations
    sampler = ResidualSampler.of(unet.config)
    lines = read_log(config.output)
    told = [line["accuracy"] for line in lines if "accuracy" in line][-LAST_LINES:]
    seconds = training_seconds(lines, config)
    found = scores(network, sampler, test, kinds, crop)
    sampling = {}
    for steps in sampled:
        again = (
            found
            if steps == sampler.steps
            else scores(network, ResidualSampler.of(unet.config, steps), test, kinds, crop)
        )
        sampling[str(steps)] = again["mean"]
    known = train[:: -(-len(train) // READ_OUT)]
    encoder = trained_encoder(config, unet)
    told_by = {
        name: readout(represented(represent, known, kinds, crop, LEARNT), represented(represent, test, kinds, crop))
        for name, represent in (("readout", bottleneck(network, sampler)), ("encoder", encoder))
        if represent is not None
    }
    return {
        "steps": {name: stage.steps for name, stage in config.active.items()},
        "seconds": sum(seconds.values()),
        "seconds_of": seconds,
        "threads": torch.get_num_threads(),
        "training_accuracy": sum(told) / len(told) if told else None,
        "readout_accuracy": told_by["readout"],
        "encoder_accuracy": told_by.get("encoder"),
        "scores": found,
        "sampling": sampling,
    }


def shared_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that all runs of an ablation share; which photographs, a digest tells: they may lie anywhere."""
    data = {name: value for name, value in settings["data"].items() if name not in ("root", "exclude")}
    return {name: value for name, value in settings.items() if name not in ("output", "seed")} | {"data": data}


class Ablation:
    """Results of a folder, and the runs that are still to do.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: bad arguments, or results of other conditions in the folder. FileNotFoundError: no photographs.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        for name, least in (("seeds", 1), ("crop", 0)):
            if getattr(arguments, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
        if not 0 < arguments.steps_scale < 1e6:
            raise ValueError(f"--steps-scale must be above 0, got {arguments.steps_scale}")
        unknown = [arm for arm in arguments.arms if arm not in ARMS]
        if unknown:
            raise ValueError(f"--arms must be of {', '.join(map(repr, ARMS))}, got {', '.join(map(repr, unknown))}")
        self.arguments, self.out = arguments, Path(arguments.out)
        files = list_images([folder_at(arguments.root)])
        self.train = [file for file in files if not any(fnmatch(file.name, each) for each in arguments.exclude)]
        if not self.train:
            raise ValueError(f"--exclude must leave photographs of {arguments.root} to train on")
        self.test = list_images([folder_at(arguments.test)]) if arguments.test else bundled_photographs()
        trained, tested = digests(self.train), digests(self.test)
        both = sorted(trained[each].name for each in trained.keys() & tested.keys())
        if both:
            raise ValueError(
                f"--root must not hold test photographs unless --exclude names them: {', '.join(both[:5])}"
                + (f" and {len(both) - 5} more" if len(both) > 5 else "")
            )
        self.more = [
            'data.source="folder"',
            f"data.root={json.dumps(str(arguments.root))}",
            f"data.exclude={json.dumps(list(arguments.exclude))}",
        ]
        base = self.config(BASE, 0)
        plain = shared_settings(as_dict(base))
        conditions = {
            "settings": plain,
            "steps": sum(stage.steps for stage in base.active.values() if not stage.reads_only),
            "training": {"photographs": len(self.train), "sha256": described(trained)},
            "test": {
                "photographs": [file.name for file in self.test],
                "sha256": described(tested),
                "crop": arguments.crop,
            },
        }
        self.results: dict[str, Any] = {"conditions": conditions, "runs": {}}
        self.read()
        old = self.results["conditions"]
        changed = differences(shared_settings(completed(old["settings"], base)), plain)
        changed += [name for name in ("steps", "training", "test") if old[name] != conditions[name]]
        if changed:
            path = self.out / RESULTS
            raise ValueError(f"--out holds results of other conditions: {', '.join(changed)} differ in {path}")
        for arm in arguments.arms:  # bad settings fail before anything is trained
            self.config(arm, 0)

    def config(self, arm: str, seed: int) -> TrainConfig:
        """Of a run in a folder of its own."""
        given = self.arguments
        return arm_config(given.config, arm, seed, self.folder(arm, seed), given.steps_scale, self.more)

    def folder(self, arm: str, seed: int) -> Path:
        """Of a run."""
        return self.out / f"{arm.replace(' ', '-')}-{seed}"

    def run(self, stop: StopRequest) -> list[str]:
        """Train and measure what is not there yet, all arms of a seed before the next.

        Returns:
            Runs whose results are not there, because other commands are at them, or because of ``stop``.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        missing = list[tuple[str, int]]()
        for seed in range(self.arguments.seeds):
            for arm in self.arguments.arms:
                with held(Path(f"{self.folder(arm, seed)}.lock")) as mine:
                    self.read()
                    there = str(seed) in self.results["runs"].get(arm, {})
                    if not there and not (mine and not stop.asked and self.one(arm, seed, stop)):
                        missing.append((arm, seed))
        self.read()  # others may be done by now
        done = self.results["runs"]
        return [f"{arm}, seed {seed}" for arm, seed in missing if str(seed) not in done.get(arm, {})]

    def one(self, arm: str, seed: int, stop: StopRequest) -> bool:
        """Train and measure a run; whether it was not stopped before its end."""
        config = self.config(arm, seed)
        if not Trainer(config, quiet=self.arguments.quiet).run(stop=stop).finished:
            return False
        sampled = SAMPLED if arm in SAMPLED_ARMS else ()
        one = measured(config, self.train, self.test, self.arguments.crop, sampled)
        self.add(arm, seed, one)
        mean = one["scores"]["mean"]
        print(
            f"{arm}, seed {seed}: {mean['psnr']:.2f} dB (degraded {mean['psnr_degraded']:.2f}), "
            f"SSIM {mean['ssim']:.4f}, accuracy {one['readout_accuracy']:.3f}, {one['seconds']:.0f} s",
            flush=True,
        )
        return True

    def read(self) -> None:
        """What is there, of this command and of others."""
        path = self.out / RESULTS
        if path.exists():
            self.results = json.loads(path.read_text(encoding="utf-8"))

    def add(self, arm: str, seed: int, one: Mapping[str, Any]) -> None:
        """Write results, and a table of all that are there, each whole."""
        with held(self.out / "results.lock", wait=True):
            self.read()
            runs = self.results["runs"]
            runs.setdefault(arm, {})[str(seed)] = one
            self.results["runs"] = {  # in the order of the arms, whenever they were trained
                arm: dict(sorted(runs[arm].items(), key=lambda x: int(x[0]))) for arm in ARMS if arm in runs
            }
            for name, text in ((RESULTS, json.dumps(self.results, indent=1) + "\n"), (TABLE, markdown(self.results))):
                write_atomically(self.out / name, lambda file, text=text: file.write_text(text, encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="clean photographs to train on")
    parser.add_argument(
        "--exclude", nargs="*", default=[], metavar="PATTERN", help="names of files there that are never trained on"
    )
    parser.add_argument(
        "--test", type=Path, metavar="FOLDER", help="clean photographs to test on (default: those that come along)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="default: %(default)s")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), metavar="ARM", help=f"of {', '.join(map(repr, ARMS))}")
    parser.add_argument("--seeds", type=int, default=3, help="of each arm, from 0 (default: %(default)s)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor of all stages' steps and warmup")
    parser.add_argument(
        "--crop", type=int, default=64, help="side of what is tested, of the middle; 0: all (default: %(default)s)"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of the base (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="tell finished arms alone")
    arguments = parser.parse_args(argv)
    try:
        ablation = Ablation(arguments)
        with stop_on_signals() as stop:
            missing = ablation.run(stop)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if stop.asked and missing:
        name = signal.Signals(stop.asked).name
        print(f"{parser.prog}: {name}: the same command goes on", file=sys.stderr)
        return 128 + stop.asked
    if any(ablation.results["runs"].values()):
        print(markdown(ablation.results))
    if missing:
        print(f"{parser.prog}: other commands are still at {'; '.join(missing)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
