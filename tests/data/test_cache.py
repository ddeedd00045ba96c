import os
import zlib

import numpy as np
import pytest

from src.data import cache
from src.run.errors import DataError, EnvironmentFault


def build():
    return {"train": {"x": np.arange(6).reshape(3, 2)}}, {"made_by": os.getpid()}


def test_built_once_then_read(tmp_path):
    folder = cache.prepare(tmp_path, "set", build)
    assert cache.read(folder, "train", "x").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert cache.prepare(tmp_path, "set", lambda: pytest.fail("built again")) == folder


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["train_x.npy", "report.json", "files.json"])
@pytest.mark.parametrize("harm", [cut, empty, flip, os.unlink])
def test_damaged_files_are_found_and_made_again(tmp_path, capsys, name, harm):
    folder = cache.prepare(tmp_path, "set", build)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    harm(folder / name)
    assert cache.prepare(tmp_path, "set", build) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert capsys.readouterr().out.startswith("The prepared data is made again, because in ")
    assert cache.prepare(tmp_path, "set", lambda: pytest.fail("built again")) == folder


def test_of_a_large_file_parts_all_over_it_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART", 8)
    monkeypatch.setattr(cache, "MAX_PARTS", 4)
    file, found = tmp_path / "large", []
    for place in (0, 7, 8, 399, 400, 607, 608):  # of 800 bytes, the parts begin at 0, 200, 400 and 600
        data = bytearray(800)
        data[place] = 1
        file.write_bytes(data)
        if cache.checksum(file) != [800, zlib.crc32(bytes(32))]:
            found.append(place)
    assert found == [0, 7, 400, 607]


def test_prepared_data_has_the_rights_that_a_new_folder_has(tmp_path):
    (tmp_path / "usual").mkdir()
    folder = cache.prepare(tmp_path, "set", build)
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_failed_build_leaves_nothing(tmp_path):
    def fails():
        raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data"):
        cache.prepare(tmp_path, "set", fails)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
    assert cache.report(cache.prepare(tmp_path, "set", build))["made_by"] == os.getpid()


def test_processes_that_start_together_build_once(tmp_path):
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            cache.prepare(tmp_path, "set", build)
            os._exit(0)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0, 0, 0, 0]
    assert cache.report(tmp_path / "set")["made_by"] in pids


def test_the_key_follows_options_sizes_and_times(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"1234")
    key = cache.fingerprint({"a": 1}, [file])
    assert key == cache.fingerprint({"a": 1}, [file])
    assert key != cache.fingerprint({"a": 2}, [file])
    os.utime(file, ns=(0, 0))
    assert key != cache.fingerprint({"a": 1}, [file])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"data.cache_dir"):
        cache.prepare(tmp_path / "file", "set", build)


def test_whose_file_it_was_is_told_apart(tmp_path):
    def fails(at):
        def build():
            raise OSError(28, "No space left on device", str(at))

        return build

    with pytest.raises(EnvironmentFault, match=r"data.cache_dir .*No space left on device -> free space"):
        cache.prepare(tmp_path / "cache", "a", fails(tmp_path / "cache/tmp123"))
    with pytest.raises(DataError, match=r"images/1.png: No space .* -> check where the data lies"):
        cache.prepare(tmp_path / "cache", "a", fails(tmp_path / "images/1.png"))
