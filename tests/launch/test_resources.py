import pytest

from tfdist.launch import resources
from tfdist.launch.job import Job


@pytest.mark.parametrize(
    "cores, num_workers, shares",
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([3, 5, 7], 2, [[3, 5], [7]]),
        ([0, 1], 2, [[0], [1]]),
        ([0, 1], 3, [[], [], []]),
        ([0], 1, [[0]]),
    ],
)
def test_cores_are_dealt_in_consecutive_runs(cores, num_workers, shares):
    assert resources.divide_cores(cores, num_workers) == shares


@pytest.mark.parametrize(
    "num_cores, num_workers, quota, share, inter_op",
    [(8, 2, None, 4, 4), (2, 2, None, 1, 2), (2, 5, None, 1, 2), (64, 2, 8.0, 4, 4), (64, 4, 2.5, 1, 2)],
)
def test_threads_follow_cores_and_the_containers_limit(num_cores, num_workers, quota, share, inter_op):
    assert resources.thread_variables(num_cores, num_workers, quota) == {
        "OMP_NUM_THREADS": str(share),
        "TF_NUM_INTRAOP_THREADS": str(share),
        "TF_NUM_INTEROP_THREADS": str(inter_op),
    }


@pytest.mark.parametrize("content, quota", [("250000 100000\n", 2.5), ("max 100000\n", None), ("", None)])
def test_the_containers_limit_is_read(tmp_path, content, quota):
    (tmp_path / "cpu.max").write_text(content)
    assert resources.core_quota(tmp_path / "cpu.max") == quota
    assert resources.core_quota(tmp_path / "missing") is None


def test_each_worker_gets_a_gpu_of_its_own(monkeypatch):
    assert resources.gpu_variables(1, 0) == {}
    assert "CUDA_VISIBLE_DEVICES" not in resources.gpu_variables(0, 1)
    assert [resources.gpu_variables(rank, 2)["CUDA_VISIBLE_DEVICES"] for rank in range(3)] == ["0", "1", "0"]
    monkeypatch.setattr("tfdist.launch.job.num_gpus", lambda: 4)
    job = Job(("x.py",), num_workers=2)
    assert job.environment(1, 0, "a:1", b"s", {})["CUDA_VISIBLE_DEVICES"] == "1"
    assert job.environment(1, 0, "a:1", b"s", {"CUDA_VISIBLE_DEVICES": "3"})["CUDA_VISIBLE_DEVICES"] == "3"
