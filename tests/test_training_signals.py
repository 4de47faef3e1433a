"""SIGTERM and Ctrl-C: a run saves after the step that it is in, says so, and goes on to the same numbers to the bit."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from bdg_fast.cli import main
from bdg_fast.training import Trainer, load_config, signals
from bdg_fast.training.log import RunLog
from bdg_fast.training.signals import StopRequest, stop_on_signals
from training_setup import losses, settings, trainer

LONG = {"stages": {"steps": 100_000}, "checkpoint": {"every": 100_000}}


@pytest.fixture
def config(tmp_path):
    """File of a run that does not end."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings(tmp_path / "run", **LONG)))
    return file


def test_sigterm_saves_and_the_run_goes_on_exactly(tmp_path, config):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command: how sums are split depends on their number
    command = [sys.executable, "-m", "bdg_fast.cli", "train", "--config", config]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **pipes) as child:
        assert child.stdout.readline().startswith("step 1 generation: loss")
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate()
    assert child.returncode == 128 + signal.SIGTERM
    stopped = len(losses(tmp_path / "run"))
    saved = f"{tmp_path / 'run'} is saved after step {stopped}; the same command goes on from there"
    assert told.splitlines()[-1] == f"bdg-fast: SIGTERM: {saved}"
    Trainer(load_config(config), quiet=True).run(until=stopped + 2)
    Trainer(load_config(config, [f"output={json.dumps(str(tmp_path / 'whole'))}"]), quiet=True).run(until=stopped + 2)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    torch.set_num_threads(threads)


def test_ctrl_c_does_the_same_and_signals_are_as_before(monkeypatch, config, capsys):
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, perhaps
    write, before = RunLog.numbers, [signal.getsignal(number) for number in signals.SIGNALS]

    def interrupted(self, step, *arguments):
        write(self, step, *arguments)
        if step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # passed on by a launcher too: the same one

    monkeypatch.setattr(signals, "REPEATED", float("inf"))
    monkeypatch.setattr(RunLog, "numbers", interrupted)
    assert main(["train", "--config", str(config)]) == 128 + signal.SIGINT
    assert "SIGINT" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    signal.signal(signal.SIGINT, ignored)
    assert Trainer(load_config(config), quiet=True).run(until=3) == (3, False, 0, None, 0)  # from step 3


SECOND = """
import hashlib, importlib.util, os, signal, sys, threading, time

spec = importlib.util.spec_from_file_location("signals", sys.argv[1])  # alone: the package takes seconds
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
signals.REPEATED = float(sys.argv[2])
time.monotonic = time.thread_time  # of whoever looks: a busy machine changes nothing
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are started with it ignored


def send():
    while time.thread_time() < 0.05:
        pass  # until the main thread is in its call
    os.kill(os.getpid(), signal.SIGINT)


with signals.stop_on_signals() as request:
    signal.raise_signal(signal.SIGTERM)
    assert request.asked == signal.SIGTERM
    sender = threading.Thread(target=send)
    sender.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 3 * 10**6)  # as a step does, keeps handlers waiting
    sender.join()
print("saved")
"""


@pytest.mark.parametrize(("repeated", "code", "told"), [(0, 1, ""), (0.5, 0, "saved\n")])
def test_a_second_signal_ends_at_once_and_one_that_comes_with_the_first_does_not(repeated, code, told):
    """Both while the process is in a long call."""
    command = [sys.executable, "-c", SECOND, signals.__file__, str(repeated)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (code, told, "")


def test_ignored_signals_stay_ignored_and_nothing_is_left():
    before, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for `nohup` and jobs of scripts
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGINT)
        assert not request.asked
        signal.raise_signal(signal.SIGTERM)
        assert request.asked == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert threading.active_count() == threads and signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, before)


def test_a_run_from_python_handles_no_signals_but_stops_when_asked(tmp_path):
    before, seen, stop = signal.getsignal(signal.SIGTERM), [], StopRequest()
    stop.ask()
    run = trainer(tmp_path / "run")
    forward = run.source.batches

    def watched(**arguments):
        seen.append(signal.getsignal(signal.SIGTERM))
        return forward(**arguments)

    run.source.batches = watched
    assert run.run(stop=stop).step == 1 and stop.agreed == signal.SIGTERM
    assert seen == [before]
    with pytest.raises(ValueError, match=r"number must be one of .*SIGTERM.*, got 9"):
        stop.ask(9)


def test_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside():
        with stop_on_signals() as request:
            seen.append((signal.getsignal(signal.SIGTERM), request.asked))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]
