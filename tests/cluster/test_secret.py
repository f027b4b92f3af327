import os
import threading

import pytest

from tfdist.cluster.secret import find_secret
from tfdist.errors import ConfigurationError


@pytest.fixture
def home(tmp_path):
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_the_given_secret_wins(home, tmp_path):
    assert find_secret({**home, "TFDIST_SECRET": "abc"}, one_host=False, source="x") == b"abc"
    file = tmp_path / "file"
    file.write_text("from a file\n")
    assert find_secret({**home, "TFDIST_SECRET_FILE": str(file)}, one_host=False, source="x") == b"from a file"
    assert not (tmp_path / "state").exists()


def test_several_hosts_need_a_secret(home):
    with pytest.raises(ConfigurationError, match="when Slurm puts workers on several hosts.*secrets.token_hex"):
        find_secret(home, one_host=False, source="Slurm")


@pytest.mark.parametrize("content, text", [(None, "No such file"), ("", "an empty file")])
def test_a_file_without_a_secret_is_refused(home, tmp_path, content, text):
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=f"TFDIST_SECRET_FILE is expected to name a file.*{text}"):
        find_secret({**home, "TFDIST_SECRET_FILE": str(file)}, one_host=True, source="x")


def test_on_one_host_all_ranks_find_one_private_secret(home, tmp_path):
    found = []
    start = threading.Barrier(8)

    def rank():
        start.wait(timeout=5)
        found.append(find_secret(home, one_host=True, source="x"))

    threads = [threading.Thread(target=rank) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=5)
    assert len(found) == 8 and len(set(found)) == 1 and len(found[0]) == 64
    directory = tmp_path / "state" / "tfdist"
    assert os.listdir(directory) == ["secret"]
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "secret").stat().st_mode & 0o777 == 0o600


def test_a_secret_that_others_could_read_is_refused(home, tmp_path):
    find_secret(home, one_host=True, source="x")
    secret = tmp_path / "state" / "tfdist" / "secret"
    secret.chmod(0o644)
    with pytest.raises(ConfigurationError, match="secret is expected to belong to you and to be closed to others"):
        find_secret(home, one_host=True, source="x")


def test_a_directory_that_others_could_change_is_refused(home, tmp_path):
    (tmp_path / "state" / "tfdist").mkdir(parents=True, mode=0o755)
    with pytest.raises(ConfigurationError, match="closed to others.*drwxr-xr-x"):
        find_secret(home, one_host=True, source="x")


def test_a_link_in_the_place_of_the_secret_is_refused(home, tmp_path):
    find_secret(home, one_host=True, source="x")
    secret = tmp_path / "state" / "tfdist" / "secret"
    secret.rename(tmp_path / "elsewhere")
    secret.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="secret is expected to be a file that we can read"):
        find_secret(home, one_host=True, source="x")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is expected to be a directory that we can make.*TFDIST_SECRET"):
        find_secret({"XDG_STATE_HOME": str(tmp_path / "file")}, one_host=True, source="x")


def test_an_empty_secret_of_this_user_is_refused(home, tmp_path):
    find_secret(home, one_host=True, source="x")
    (tmp_path / "state" / "tfdist" / "secret").write_text("")
    with pytest.raises(ConfigurationError, match="is expected to hold a secret. Received: an empty file. Remove it"):
        find_secret(home, one_host=True, source="x")
