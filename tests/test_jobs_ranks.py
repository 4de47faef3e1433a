"""Manifests shared by two processes of `torchrun`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdg_fast.cli import main, manifest_glcm

NAMES = [f"{number}.png" for number in range(6)]


def torchrun(folder, *command):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), np.uint8)).save(name)
    Path("files.csv").write_text("\n".join(["path", *NAMES]))
    return tmp_path


def test_two_processes_give_the_file_of_one_and_all_end_together(photos):
    Path("3.png").write_bytes(b"no picture")
    command = ["glcm", "--manifest", "files.csv", "--output"]
    assert main([*command, "one.csv"]) == 1
    done = torchrun(photos, "-m", "bdg_fast.cli", *command, "two.csv")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("not read: 3.png") == 1 and done.stdout.count("5 of 6 images") == 2
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()
    summary = json.loads(Path("two.csv.manifest.json").read_text())["summary"]
    assert (summary["runner"], summary["workers"], summary["done"]) == ("torchrun", 2, 5)
    assert {name: each["images"] for name, each in summary["by_worker"].items()} == {"rank-0": 3, "rank-1": 2}


def test_a_process_that_dies_fails_the_run_and_the_next_does_what_is_missing(photos, capsys):
    done = torchrun(photos, __file__, "glcm", "--manifest", "files.csv", "--output", "two.csv", "--chunk", "1")
    assert done.returncode != 0 and "exitcode  : 3" in done.stderr
    assert not Path("two.csv").exists()
    assert main(["glcm", "--manifest", "files.csv", "--output", "two.csv"]) == 0
    told = capsys.readouterr().out
    kept = int(told.split()[0])
    assert 1 <= kept <= 4 and f"{6 - kept} of {6 - kept} images, " in told
    lines = [json.loads(line) for line in Path("two.csv.manifest.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == NAMES and {line["status"] for line in lines} == {"done"}


def dies(self, items, parts):
    if "3.png" in [item.id for item in items]:  # the second process's second chunk
        os._exit(3)
    return CHUNK(self, items, parts)


if __name__ == "__main__":
    CHUNK = manifest_glcm.MatrixWork._chunk
    manifest_glcm.MatrixWork._chunk = dies
    sys.exit(main())
