"""Rates measured, saved and given back; one choice for all ranks, whoever sets what."""

import json
import re

import numpy as np
import pytest

from tests.multiprocess import run_workers
from tfdist.cluster import variables
from tfdist.collectives import ALL_REDUCE, Topology
from tfdist.collectives.choose import predict
from tfdist.collectives.fit import Probe
from tfdist.collectives.rates import LevelRates, Rates, default_rates
from tfdist.comm import local, plan_file, tuning
from tfdist.comm.plans import Choice
from tfdist.errors import ConfigurationError, MismatchError

TWO_HOSTS = Topology(((0, 1), (2, 3)))


def tuned(world_size, plan=None, **settings):
    """Tunes a group of threads; returns the choices of all ranks."""

    def body(group):
        tuning.tune(group, plan)
        assert group.all_reduce(np.ones(5))[0] == world_size  # still works
        return group.choice

    return local.run(world_size, body, **settings)


@pytest.mark.parametrize(("world_size", "topology"), [(2, None), (5, None), (4, TWO_HOSTS)])
def test_all_ranks_have_rank_0s_measurement(world_size, topology):
    choices = tuned(world_size, topology=topology)
    assert all(choice == choices[0] for choice in choices)
    assert choices[0].rates != default_rates(topology or Topology((range(world_size),)))
    assert choices[0].crossovers[0][0] == 0


def test_a_local_group_is_measured_if_asked():
    groups = local.connect(3, measured=True)
    assert groups[0].choice == groups[2].choice != local.connect(3)[0].choice
    assert tuning.describe(groups[0]).startswith("all-reduce by ")
    groups[0].algorithm = "ring"
    assert tuning.describe(groups[0]) == "all-reduce by ring, as chosen for every size"
    for group in groups:
        group.close()


def test_a_plan_is_saved_and_given_back(tmp_path, monkeypatch):
    path = str(tmp_path / "plan.json")
    measured = tuned(3, path)
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured again"))
    assert tuned(3, path) == measured
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_what_a_plan_says_is_done(tmp_path):
    path = tmp_path / "plan.json"
    tuned(2, str(path))
    saved = json.loads(path.read_text())
    saved["choice"]["crossovers"] = [[0, "halving_doubling"], [8000, "direct"]]
    path.write_text(json.dumps(saved))
    for choice in tuned(2, str(path)):
        assert [choice.algorithm(size) for size in (0, 7999, 8000, 1 << 40)] == ["halving_doubling"] * 2 + [
            "direct"
        ] * 2


def test_a_plan_of_other_hosts_is_refused_on_every_rank(tmp_path):
    path = str(tmp_path / "plan.json")
    tuned(4, path, topology=TWO_HOSTS)

    def body(group):
        with pytest.raises(
            ConfigurationError, match=r"same hosts, hosts=\(\(0, 1, 2, 3\),\).*saved for hosts=\(\(0, 1\)"
        ):
            tuning.tune(group, path)

    local.run(4, body)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "JSONDecodeError"),
        ("[1]", "TypeError"),
        ("{}", "KeyError: 'topology'"),
        ('{"topology": {"hosts": [[0, 1]]}, "choice": {}}', "choice is expected to hold rates.*'rates'"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, text, match):
    path = tmp_path / "plan.json"
    path.write_text(text)

    def body(group):
        with pytest.raises(ConfigurationError, match=f"TFDIST_PLAN is expected to name a file.*{match}"):
            tuning.tune(group, str(path))

    local.run(2, body)
    assert path.read_text() == text


@pytest.mark.parametrize("path", ["{}", "{}/no/such/folder/plan.json"], ids=["a folder", "no folder"])
def test_a_plan_that_cannot_be_saved_is_told_to_all(tmp_path, path):
    def body(group):
        with pytest.raises(ConfigurationError, match="TFDIST_PLAN is expected to name a file"):
            tuning.tune(group, path.format(tmp_path))

    local.run(2, body)
    assert not list(tmp_path.iterdir())


def test_a_plan_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path, monkeypatch):
    def replace(*_):
        raise OSError("no room")

    monkeypatch.setattr(plan_file.os, "replace", replace)
    topology = Topology(((0, 1),))
    with pytest.raises(ConfigurationError, match="can be written. Received: TFDIST_PLAN=.*no room"):
        plan_file.save(str(tmp_path / "plan.json"), topology, Choice.of(topology, default_rates(topology)))
    assert not list(tmp_path.iterdir())


def test_by_default_means_without_measuring(monkeypatch):
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured"))
    for choice in tuned(2, "default", transport="tcp"):
        topology = Topology(((0, 1),), shared=False)
        assert choice == Choice.of(topology, default_rates(topology))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda values: values.pop("bucket_bytes"), "bucket_bytes"),
        (lambda values: values.update(crossovers=[[1, "ring"]]), "ascending from 0"),
        (lambda values: values.update(crossovers=[[0, "ring"], [0, "direct"]]), "ascending from 0"),
        (lambda values: values.update(crossovers=[[0, "rings"]]), "rings"),
        (lambda values: values.update(crossovers=7), "choice is expected"),
        (lambda values: values["rates"].update(start_seconds=0), "all numbers > 0"),
    ],
)
def test_a_broken_choice_is_refused(change, match):
    topology = Topology(((0, 1),))
    values = json.loads(json.dumps(Choice.of(topology, default_rates(topology)).to_dict()))
    assert Choice.from_dict(values) == Choice.of(topology, default_rates(topology))
    change(values)
    with pytest.raises(ConfigurationError, match=match):
        Choice.from_dict(values)


@pytest.mark.parametrize("plans", [(None, None), (None, "default")], ids=["algorithm", "plan"])
def test_ranks_of_different_settings_are_told(plans):
    def body(group):
        if plans[1] is None:
            group.algorithm = ("ring", None, "direct")[group.rank]
        key = (
            "TFDIST_ALGORITHM=ring on rank 0, TFDIST_ALGORITHM=None" if plans[1] is None else "TFDIST_PLAN=measured on"
        )
        with pytest.raises(MismatchError, match=f"the choice of the all-reduce was expected to be equal.*{key}"):
            tuning.tune(group, plans[group.rank % 2])

    local.run(3, body)


class SlowCrew:
    """Takes what the model says, on a clock of its own."""

    def __init__(self, topology, rates):
        self.now, self.done = 0.0, []
        self._topology, self._rates = topology, rates

    def probe(self, name, num_bytes, times):
        seconds = predict(name, self._topology, self._rates, num_bytes)
        self.now += seconds * times + predict("recursive_doubling", self._topology, self._rates, 8192)
        self.done.append((name, num_bytes, times))
        return Probe(name, num_bytes, seconds)


@pytest.mark.parametrize("world_size", [2, 4, 64])
@pytest.mark.parametrize("latency_seconds", [1e-6, 30e-6, 5e-3])
@pytest.mark.parametrize("bytes_per_second", [1e6, 12.5e6, 1e9, 1e10])
def test_slow_links_are_probed_no_longer_than_fast_ones(monkeypatch, world_size, latency_seconds, bytes_per_second):
    topology = Topology([[rank] for rank in range(world_size)])
    links = LevelRates(latency_seconds, latency_seconds / 10, 1 / bytes_per_second)
    crew = SlowCrew(topology, Rates(links, links, 1e-10, 1e-6))
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: crew.now)
    tuning._measure(crew, topology)
    least = 2 * predict("recursive_doubling", topology, Rates(links, links, 1e-10, 1e-6), 8192)
    assert crew.now <= max(tuning._BUDGET_SECONDS, least)
    if latency_seconds < 1e-3 and bytes_per_second >= 1e9:
        assert {name for name, _, _ in crew.done} == {"ring", "recursive_doubling", "hierarchical"} or world_size > 4
        assert max(num_bytes for _, num_bytes, _ in crew.done) >= 1 << 20 or world_size > 4


@pytest.mark.parametrize(
    ("read", "name", "value", "match"),
    [(lambda e: variables.algorithm(e, ALL_REDUCE), "TFDIST_ALGORITHM", "rings", "one of ring, direct.*='rings'")],
)
def test_a_variable_without_meaning_gets_one_line(read, name, value, match):
    assert read({}) is None and read({name: ""}) is None and read({name: "ring"}) == "ring"
    with pytest.raises(ConfigurationError, match=match):
        read({name: value})


@pytest.mark.multiprocess
def test_the_workers_of_a_job_measure_save_and_obey(tmp_path, transport):
    path = tmp_path / "plan.json"
    common = {"TFDIST_PLAN": str(path), "TFDIST_TRANSPORT": transport}
    settings = (common, {**common, "TFDIST_ALGORITHM": "direct"})
    results = [run_workers(3, "tests.comm.group_cases:choice", environment=extra) for extra in settings]
    saved = json.loads(path.read_text())
    for workers, algorithm in zip(results, (None, "direct")):
        for worker in workers:
            assert worker == {"choice": saved["choice"], "algorithm": algorithm, "hosts": [[0, 1, 2]]}
    assert saved["topology"] == {"hosts": [[0, 1, 2]], "shared": transport == "shm"}


@pytest.mark.multiprocess
def test_workers_of_different_algorithms_are_told():
    environment = {"TFDIST_ALGORITHM": ["ring", "direct"]}
    for code, output, _ in run_workers(2, "tests.comm.group_cases:choice", environment=environment, check=False):
        assert code != 0
        assert re.search("MismatchError.*TFDIST_ALGORITHM=ring on rank 0, TFDIST_ALGORITHM=direct on rank 1", output)


@pytest.mark.multiprocess
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_unknown_algorithm_is_told_before_anything(num_workers):
    environment = {"TFDIST_ALGORITHM": "rings"}
    for code, output, _ in run_workers(
        num_workers, "tests.comm.group_cases:choice", environment=environment, check=False
    ):
        assert code != 0 and "ConfigurationError: TFDIST_ALGORITHM is expected to be one of ring" in output
