import pytest

from tfdist.errors import ConfigurationError
from tfdist.launch import cli
from tfdist.simulate import command


def columns(text):
    lines = [line.split() for line in text.splitlines()]
    return {row[0]: dict(zip(["mode", "speed", "x", *lines[0][4:]], row)) for row in lines[1:]}


def test_a_row_for_each_mode(capsys):
    arguments = "--workers 4 --mode sync,bounded:2,async,sync:1 --stragglers 0.05x5 --gradients 200".split()
    assert cli.main(["simulate", *arguments]) == 0
    rows = columns(capsys.readouterr().out)
    assert list(rows) == ["sync", "bounded:2", "async", "sync:1"]
    assert 1.00 == float(rows["sync"]["x"]) < float(rows["bounded:2"]["x"]) < float(rows["async"]["x"])
    assert rows["sync"]["updates"] == "50" and rows["async"]["updates"] == "200"
    assert int(rows["sync:1"]["dropped"]) > 0 and rows["sync"]["dropped"] == "0"
    assert all(0 < float(row["error"]) < 0.8 for row in rows.values())


def test_every_option_arrives(capsys):
    arguments = (
        "--workers 2 --mode async --slow-workers 1x3 --compute-seconds 1 --spread 0 --latency-seconds 0.5 "
        "--bytes-per-second 22096 --gradients 40 --learning-rate 0.05 --momentum 0.5 --staleness-weighting inverse "
        "--delay-compensation 1 --seed 3"
    ).split()
    assert command.main(arguments) == 0
    row = columns(capsys.readouterr().out)["async"]
    # 11,048 bytes take a second each way, with the latency: steps of 5 and of 3 seconds.
    assert float(row["seconds"]) == pytest.approx(40 / (1 / 5 + 1 / 3), rel=0.05)
    for option in ("--learning-rate", "--momentum", "--staleness-weighting", "--delay-compensation", "--seed"):
        index = arguments.index(option)
        command.main(arguments[:index] + arguments[index + 2 :])
        assert columns(capsys.readouterr().out)["async"]["error"] != row["error"], option


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mode", "foo"], "modes such as async,bounded:4,sync,sync:2 are expected. Received: 'foo'"),
        (["--mode", "async:1"], "Received: 'async:1'"),
        (["--mode", "sync,bounded"], "Received: 'bounded'"),
        (["--mode", "sync:"], "Received: 'sync:'"),
        (["--mode", "bounded:-1"], "Received: 'bounded:-1'"),
        (["--stragglers", "5"], "a fraction and a factor such as 0.05x5 is expected. Received: '5'"),
        (["--stragglers", "1x5"], "Received: '1x5'"),
        (["--slow-workers", "0.5x5"], "a number of workers and a factor such as 1x5 is expected. Received: '0.5x5'"),
        (["--slow-workers", "9x5"], "--slow-workers is expected to be at most --workers 8. Received: 9. Lower it."),
        (["--workers", "2", "--mode", "sync:2"], "less than the number of workers, 2. Received: backup_workers=2"),
        (["--workers", "0"], "an integer >= 1 is expected. Received: '0'"),
    ],
)
def test_mistakes_are_refused(arguments, text):
    with pytest.raises(ConfigurationError, match=text):
        command.main(arguments)


def test_a_mistake_is_one_line(capsys):
    assert cli.main(["simulate", "--mode", "foo"]) == 2
    assert capsys.readouterr().err.startswith("tfdist simulate: argument --mode: modes such as")
