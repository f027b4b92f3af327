"""The examples as a user runs them, on a small slice of made-up images: same result with one worker and with two."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tfdist.data import downloads, images, ratings

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVE = """
import sys
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
rows = tf.constant(np.load(sys.argv[2], allow_pickle=False)["x_test"])
print(np.mean(served.serve(rows).numpy().argmax(-1) == np.load(sys.argv[2], allow_pickle=False)["y_test"]))
assert "tfdist" not in sys.modules
"""


def squares(rows, seed):
    """Ten kinds of picture: a bright square at one of ten places, under noise. Easy to learn, impossible to guess."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, rows)
    pictures = generator.integers(0, 120, (rows, 28, 28))
    for picture, label in zip(pictures, labels):
        row, column = 3 + 12 * (label // 5), 1 + 5 * (label % 5)
        picture[row : row + 6, column : column + 5] += 60
    return pictures, labels


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    (cache / "tfdist").mkdir()
    arrays = images._checked(*squares(1500, seed=1), *squares(500, seed=2))
    downloads.write_cache(cache / "tfdist" / "images.npz", {**arrays, "name": np.array("squares")})
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}


def run(environment, folder, *command):
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def accuracy_of(output, data="squares", workers=1):
    assert len(re.findall(r"test accuracy: ", output)) == 1, output  # the chief alone speaks
    assert f"data: {data}, 1500 images; " in output and f"workers: {workers}" in output, output
    return float(re.search(r"test accuracy: ([0-9.]+); throughput: [1-9][0-9]* images/s", output)[1])


def train(environment, folder, script, *arguments, workers=1):
    launcher = ["-m", "tfdist", "run", "-n", str(workers)] if workers > 1 else []
    command = [
        *launcher,
        str(ROOT / "examples" / script),
        "--epochs",
        "4",
        "--export",
        str(folder / "model" / "1"),
        *arguments,
    ]
    return accuracy_of(run(environment, folder, *command), workers=workers)


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", ["mnist.py", "custom_loop.py"])
def test_two_workers_reach_what_one_process_reaches(environment, tmp_path, script):
    folders = [tmp_path / name for name in ("mirrored", "ring")]
    for folder in folders:
        folder.mkdir()
    alone = train(environment, folders[0], script, "--strategy", "mirrored")
    together = train(environment, folders[1], script, "--strategy", "ring", workers=2)
    assert alone > 0.9
    assert together == pytest.approx(alone, abs=0.05)  # of 500 rows; the full sets are held to half a point
    # What was exported serves without tfdist, and is the model that was tested.
    data = str(pathlib.Path(environment["XDG_CACHE_HOME"]) / "tfdist" / "images.npz")
    without = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    served = run(without, tmp_path, "-c", SERVE, str(folders[1] / "model" / "1"), data)
    assert float(served.strip().splitlines()[-1]) == pytest.approx(together, abs=1e-4)


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_the_recommender_beats_the_mean_with_two_workers(environment):
    generator = np.random.default_rng(3)
    users, items = generator.integers(0, 20, 4000), generator.integers(0, 30, 4000)
    made_up = 1 + (users % 3) + (items % 3)  # a user's and a film's share: what biases can learn
    path = pathlib.Path(environment["XDG_CACHE_HOME"]) / "tfdist" / "ratings.npz"
    downloads.write_cache(path, {**ratings._checked(users, items, made_up), "name": np.array("made up")})
    command = ["--strategy", "ring", "--epochs", "30", "--batch-size", "64"]
    output = run(
        environment, ROOT, "-m", "tfdist", "run", "-n", "2", str(ROOT / "examples" / "recommender.py"), *command
    )
    assert output.count("test RMSE: ") == 1 and "made up, 3600 ratings; strategy: ring; workers: 2" in output, output
    error, baseline = map(float, re.search(r"test RMSE: ([0-9.]+); always the mean: ([0-9.]+)", output).groups())
    assert error < 0.8 * baseline
