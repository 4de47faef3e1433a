"""Which process this is: whose GPU it takes, and what it leaves behind when something fails."""

import pytest
import torch
import torch.distributed as dist

from bdg_fast.ranks import ranks


@pytest.fixture
def gpus(monkeypatch):
    """Four that are not there, of which the second is the current one."""
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    return taken


def test_a_process_that_torchrun_started_takes_its_own_gpu(gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    for local, expected in ((3, 3), (5, 1)):  # a machine may show each process its own alone
        monkeypatch.setenv("LOCAL_RANK", str(local))
        with ranks("cuda") as found:
            assert found.device == torch.device("cuda", expected) == gpus[-1] and (found.rank, found.world) == (5, 8)
        with ranks(f"cuda:{expected}") as found:
            assert found.device == torch.device("cuda", expected)
    with (
        pytest.raises(ValueError, match=r"device must be 'cuda', of which this process takes 'cuda:1', got 'cuda:2'"),
        ranks("cuda:2"),
    ):
        pass
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the only one on its machine shares with nobody
    with ranks("cuda:2") as found:
        assert found.device == torch.device("cuda", 2)


def test_a_process_of_somebody_s_own_launcher_keeps_its_gpu(gpus):
    with ranks("cuda") as found:
        assert found.device == torch.device("cuda", 1) == gpus[-1]
    with ranks("cuda:2") as found:
        assert found.device == torch.device("cuda", 2)


def test_after_an_error_nobody_is_waited_for(monkeypatch):
    """NCCL would wait until the others have ended what they wait for this process in."""
    here, left = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(here))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: here.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(here.pop()))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with ranks("cpu"):
        assert here == ["gloo"]
    assert left == ["gloo"]
    with pytest.raises(OSError, match="full"), ranks("cpu"):
        raise OSError("full")
    assert left == ["gloo"]
