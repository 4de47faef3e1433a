"""Manifests shared by two processes of `torchrun`."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
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


def both(monkeypatch, *command):
    """Exit codes of this process and of a second one, as `torchrun` starts them, and what that one said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    other = subprocess.Popen(
        [sys.executable, "-m", "bdg_fast.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | shared | {"RANK": "1", "LOCAL_RANK": "1", "OMP_NUM_THREADS": "1"},
    )
    with other, monkeypatch.context() as patched:
        for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            patched.setenv(name, value)
        patched.setattr("bdg_fast.ranks.PATIENCE", timedelta(minutes=3))  # if the other could not begin
        code = main(command)
        told = other.communicate()[0]
    return code, other.returncode, told


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), np.uint8)).save(name)
    Path("files.csv").write_text("\n".join(["path", *NAMES]))
    return tmp_path


def test_two_processes_give_the_file_of_one_and_all_end_together(photos, monkeypatch, capsys):
    Path("3.png").write_bytes(b"no picture")
    command = ["glcm", "--manifest", "files.csv", "--output"]
    assert main([*command, "one.csv"]) == 1
    capsys.readouterr()
    *codes, other = both(monkeypatch, *command, "two.csv")
    told = capsys.readouterr()
    assert codes == [1, 1], other
    assert told.err.count("not read: 3.png") == 1 and told.out.count("5 of 6 images") == 2 and not other
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()
    summary = json.loads(Path("two.csv.manifest.json").read_text())["summary"]
    assert (summary["runner"], summary["workers"], summary["done"]) == ("torchrun", 2, 5)
    assert {name: each["images"] for name, each in summary["by_worker"].items()} == {"rank-0": 3, "rank-1": 2}


def test_a_share_of_fingerprints_with_failures_ends_with_the_others(photos, monkeypatch, capsys):
    for name in NAMES:
        Image.new("RGB", (32, 32)).save(name)
    Path("0.png").write_bytes(b"no picture")  # of the first share
    command = ["fingerprints", *NAMES, "--per-part", "1", "--output"]
    assert main([*command, "one"]) == 1
    *codes, other = both(monkeypatch, *command, "two")
    assert codes == [1, 1], other
    assert "not read: 0.png" in capsys.readouterr().err and "3 images of share 1/2" in other and "0.png" not in other
    assert Path("two/_manifest.json").read_bytes() == Path("one/_manifest.json").read_bytes()


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
