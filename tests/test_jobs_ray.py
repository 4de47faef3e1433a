"""Manifests on Ray's workers: results of a local run, failures named, a worker that dies tried again."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdg_fast.cli import main
from bdg_fast.cli.manifest_glcm import MatrixWork
from bdg_fast.jobs import Record

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on this machine: small, silent, gone at the end."""
    # nothing is sent; no worker starts before it is asked for
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0"}
    ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Five pictures and what is none, listed in `files.csv`, from the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), np.uint8)).save(name)
    Path("4.png").write_bytes(b"no picture")
    Path("files.csv").write_text("\n".join(["path", *names]))
    return tmp_path


def test_restore_gives_the_bytes_of_a_local_run_which_goes_on_from_it(photos, checkpoint, capsys):
    command = ["restore", "--manifest", "files.csv", "--checkpoint", os.path.relpath(checkpoint), "--device", "cpu"]
    command += ["--backend", "eager"]  # loads least
    assert main([*command, "--output-dir", "here"]) == 1
    capsys.readouterr()
    assert main([*command, "--output-dir", "ray", "--ray", "--workers", "1"]) == 1
    told = capsys.readouterr()
    assert "4.png: cannot identify" in told.err and "5 of 6 images" in told.out and "by 1 worker: " in told.out
    lines = [json.loads(line) for line in Path("ray/_manifest.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done"] * 4 + ["failed"] + ["done"]
    assert "4.png: cannot identify" in lines[4]["error"]
    assert str(os.getpid()) not in {line["worker"].rpartition("-")[2] for line in lines}
    for line in lines[:4] + lines[5:]:
        assert Path("ray", line["output"]).read_bytes() == Path("here", line["output"]).read_bytes()
    summary = json.loads(Path("ray/_manifest.json").read_text())["summary"]
    assert (summary["runner"], summary["done"], summary["failed"]) == ("ray", 5, 1)
    assert summary["images_per_second_and_worker"] == summary["images_per_second"] > 0
    Path("4.png").write_bytes(Path("5.png").read_bytes())
    assert main([*command, "--output-dir", "ray"]) == 0
    assert "5 of 6 are done already" in capsys.readouterr().out
    assert Path("ray/4.png").read_bytes() == Path("ray/5.png").read_bytes()


class DiesOnce(MatrixWork):
    """Its first process is killed in the midst of its first chunk."""

    def load(self):
        chunk = super().load()

        def killed(items, parts):
            lines = chunk(items, parts)
            yield next(lines)
            if not Path(parts, "loaded").read_text():
                Path(parts, "loaded").write_text("once")
                os._exit(1)
            yield from lines

        return killed


def test_glcm_gives_the_file_of_a_local_run_though_a_worker_dies(photos, monkeypatch):
    command = ["glcm", "--manifest", "files.csv", "--output"]
    assert main([*command, "here.csv"]) == 1
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    monkeypatch.setattr("bdg_fast.cli.manifest_glcm.MatrixWork", DiesOnce)
    killed = []
    monkeypatch.setattr(Record, "join", join_and_look(Record.join, killed))
    assert main([*command, "ray.csv", "--ray", "--workers", "1"]) == 1
    assert killed == ["once", 2]
    assert Path("ray.csv").read_bytes() == Path("here.csv").read_bytes()


def join_and_look(join, killed):
    def looked(self, *arguments):
        killed.extend([(self.parts / "loaded").read_text(), len(list(self.parts.glob("*.jsonl")))])
        return join(self, *arguments)

    return looked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "2 workers of 1 CPUs and 0 GPUs are more than Ray has: 1 CPUs"),
        (["--gpus-per-worker", "1"], "1 workers of 1 CPUs and 1 GPUs are more than Ray has"),
    ],
)
def test_more_workers_than_there_is_room_for_are_refused(photos, capsys, options, message):
    assert main(["glcm", "--manifest", "files.csv", "--output", "x.csv", "--ray", *options]) == 2
    assert message in capsys.readouterr().err
