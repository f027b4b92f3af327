import pytest

from tfdist.collectives import Topology
from tfdist.errors import ConfigurationError


def test_hosts_of_ranks():
    topology = Topology([[3, 0], [1, 2]])
    assert topology.world_size == 4 and topology.host_of == (0, 1, 1, 0)
    assert topology == Topology(((3, 0), (1, 2))) and len({topology, Topology(((3, 0), (1, 2)))}) == 1


@pytest.mark.parametrize("hosts", [(), ((0, 1), ()), ((0, 2),), ((0, 1), (1,)), ((1,),)])
def test_a_rank_that_is_missing_or_stands_twice_is_refused(hosts):
    with pytest.raises(ConfigurationError, match="every rank from 0 on exactly once.*Received: hosts=.*List the ranks"):
        Topology(hosts)
