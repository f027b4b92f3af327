"""Placement: every element once, rows whole, bytes balanced."""

import math

import pytest

from tfdist.parameter_server.sharding import Part, place, row_elements

MODELS = {
    "one large": [(1_000_000, 64)],
    "small ones": [(7, 3)] * 40,
    "a dense network": [(784, 512), (512,), (512, 256), (256,), (256, 10), (10,)],
    "an embedding and its head": [(100_003, 16), (16, 32), (32,), ()],
    "fewer rows than servers": [(2, 100_000), (1, 300_000)],
    "nothing in some": [(0, 5), (5, 0), (3,)],
    "none": [],
}


@pytest.mark.parametrize("num_servers", [1, 2, 3, 5])
@pytest.mark.parametrize("model", MODELS)
def test_every_element_has_one_place(model, num_servers):
    shapes = MODELS[model]
    for shape, parts in zip(shapes, place(shapes, [4] * len(shapes), num_servers)):
        ends = [0]
        for part in parts:
            assert part.begin == ends[-1] and 0 <= part.server < num_servers
            assert part.begin % row_elements(shape) == 0 and part.elements % row_elements(shape) == 0
            ends.append(part.begin + part.elements)
        assert ends[-1] == math.prod(shape)
        assert len({part.server for part in parts}) == len(parts)


@pytest.mark.parametrize("num_servers", [2, 3, 5])
@pytest.mark.parametrize("model", ["one large", "small ones", "a dense network", "an embedding and its head"])
def test_bytes_are_balanced(model, num_servers):
    shapes = MODELS[model]
    loads, whole, rows = [0] * num_servers, [0], 0
    for shape, parts in zip(shapes, place(shapes, [4] * len(shapes), num_servers)):
        for part in parts:
            loads[part.server] += part.elements * 4
        if len(parts) > 1:
            rows += row_elements(shape) * 4  # split between rows
        else:
            whole.append(parts[0].elements * 4)
    assert max(loads) <= sum(loads) / num_servers + max(whole) + rows
    assert max(whole) <= max(sum(loads) / num_servers / 4, 1 << 14)


def test_large_tensors_are_split_between_rows_and_small_ones_kept_whole():
    large, small = place([(10, 4096), (3,)], [4, 4], 2)
    assert large == [Part(0, 0, 5 * 4096), Part(1, 5 * 4096, 5 * 4096)]
    assert len(small) == 1


def test_a_rule_that_looks_at_whole_tensors_keeps_them():
    assert place([(10, 4096)], [4], 2, may_split=False) == [[Part(0, 0, 10 * 4096)]]


def test_item_size_counts():
    (doubles,), (halves,) = place([(1000,), (1000,)], [8, 2], 2)
    assert doubles.server != halves.server
