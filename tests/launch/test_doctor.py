import json
import pathlib
import subprocess
import sys

import pytest

from tfdist.launch import doctor

VERSIONS = {"tensorflow-cpu": "2.21.0", "keras": "3.15.1", "numpy": "2.4.6"}


@pytest.fixture
def examine(monkeypatch):
    """Examines an installation of the given versions, without starting TensorFlow."""

    def call(versions=VERSIONS, **environ):
        monkeypatch.setattr(doctor, "_version", versions.get)
        monkeypatch.setattr(doctor, "_tensorflow_at_work", lambda environ: [])
        monkeypatch.setattr(doctor, "_native_core", lambda: doctor.Finding("native core", "loads"))
        return {finding.name: finding for finding in doctor.examine(environ)}

    return call


def test_a_sound_installation_has_no_problem(examine):
    findings = examine()
    assert [name for name, finding in findings.items() if finding.problem] == []
    assert findings["cluster"].value == "one worker: rank 0 of 1"
    assert doctor.render(list(findings.values())).endswith("\n\nNothing is wrong.")


@pytest.mark.parametrize(
    "name, versions, environ, problem",
    [
        ("tensorflow", {"tensorflow-cpu": None}, {}, "pip install tensorflow-cpu"),
        ("tensorflow", {"tensorflow": "2.21.0"}, {}, "pip uninstall tensorflow tensorflow-cpu"),
        ("tensorflow", {"tensorflow-cpu": "2.15.1"}, {}, "2.16 or newer is needed"),
        ("keras", {"keras": None}, {}, "pip install keras"),
        ("keras", {"keras": "2.15.0"}, {}, "version 3 or newer"),
        ("keras", {}, {"KERAS_BACKEND": "jax"}, "KERAS_BACKEND='jax'"),
        ("keras", {}, {"TF_USE_LEGACY_KERAS": "1"}, "TF_USE_LEGACY_KERAS selects Keras 2"),
        ("numpy", {"numpy": None}, {}, "pip install numpy"),
        ("cluster", {}, {"TFDIST_RANK": "1"}, "TFDIST_RANK without TFDIST_WORLD_SIZE"),
    ],
)
def test_each_problem_comes_with_its_remedy(examine, name, versions, environ, problem):
    findings = examine({**VERSIONS, **versions}, **environ)
    assert problem in findings[name].problem
    assert [other for other in findings if findings[other].problem] == [name]
    text = doctor.render(list(findings.values()))
    assert f"\n! {name}" in text and f"\n{name}: " in text


def test_the_cluster_is_shown_as_seen_from_here(examine):
    environ = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "5000", "TFDIST_SECRET": "s"}
    assert examine(**environ)["cluster"].value == (
        "torchrun: rank 1 of 2, local rank 1 of 2, store 127.0.0.1:5000 (served elsewhere), listens on 127.0.0.1"
    )
    alone = {"TFDIST_RANK": "0", "TFDIST_WORLD_SIZE": "1", "TFDIST_LOCAL_RANK": "0", "TFDIST_LOCAL_WORLD_SIZE": "1",
             "TFDIST_STORE": "127.0.0.1:1", "TFDIST_NUM_SERVERS": "3", "TFDIST_SECRET": "s"}  # fmt: skip
    assert examine(**alone)["cluster"].value.endswith("listens on 127.0.0.1, servers: 3")


def test_a_missing_native_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("tfdist.comm.library.FOLDER", tmp_path)
    monkeypatch.delenv("TFDIST_NATIVE_DIR", raising=False)
    from tfdist.comm import library

    library.core.cache_clear()
    try:
        finding = doctor._native_core()
    finally:
        library.core.cache_clear()
    assert str(tmp_path) in finding.value and "g++" in finding.problem


@pytest.mark.parametrize("code, problem", [("raise ImportError('no such file')", "no such file"), ("", "exit code 0")])
def test_a_tensorflow_that_cannot_be_imported_is_named(monkeypatch, code, problem):
    monkeypatch.setattr(doctor, "_TRY_TENSORFLOW", code)
    (finding,) = doctor._tensorflow_at_work({})
    assert "TensorFlow cannot be imported" in finding.problem and problem in finding.problem


def test_a_driver_whose_gpus_tensorflow_does_not_see_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_TRY_TENSORFLOW", 'print(\'found:{"gpus": 0, "operations": "x"}\')')
    monkeypatch.setattr(doctor, "num_gpus", lambda: 2)
    operations, gpus = doctor._tensorflow_at_work({})
    assert operations.problem is None and "tensorflow[and-cuda]" in gpus.problem
    assert doctor._tensorflow_at_work({"CUDA_VISIBLE_DEVICES": ""})[1].problem is None


@pytest.mark.multiprocess
def test_the_command_agrees_with_its_exit_code():
    root = str(pathlib.Path(__file__).resolve().parents[2])
    run = subprocess.run([sys.executable, "-m", "tfdist", "doctor", "--json"], cwd=root, capture_output=True, text=True,
                         timeout=120)  # fmt: skip
    report = json.loads(run.stdout)
    assert report["ok"] == (run.returncode == 0) == all(f["problem"] is None for f in report["findings"])
    assert {"tfdist", "tensorflow", "keras", "native core", "cores", "cluster"} <= {
        f["name"] for f in report["findings"]
    }
