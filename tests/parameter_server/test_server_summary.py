"""What a server leaves at its end is what `tfdist run --summary` reads."""

import json

import numpy as np

from tfdist.launch import summary
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.rules import make_rule
from tfdist.parameter_server.server import ParameterServer

SECRET = b"s" * 32


def test_the_launcher_reads_what_a_server_has_counted():
    rule = make_rule("sgd", momentum=0.0)
    with ParameterServer(1, SECRET) as server:
        client = Client([server.address], 0, SECRET, timeout=20.0)
        for name in ("one", "other"):
            store = client.add_store(name, [Tensor("w", (3,), "float32", rule)], Options())
            store.write(0, [np.zeros(3, np.float32)])
            store.begin(1, 0, tell=True)
            for _ in range(2):
                store.exchange([np.ones(3, np.float32)], [np.empty(3, np.float32)], learning_rate=0.1)
        text = json.dumps({"server": 0, **server.summary()}).encode()
        client.close()
    (found,) = summary.parse([text])
    assert (found["updates"], found["parameters_bytes"]) == (4, 24)
    assert (found["rows"][0].pushes, found["rows"][0].staleness) == (4, {0: 4})
