"""Damaged, foreign and malicious checkpoints, full disks, locked and unwritable folders."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from harness import EVERY_STEP, TINY, assert_same_end, before_call, before_change, in_write, rows

from src.models.classification import Classification
from src.run import checkpoint
from src.run.checkpoint import newest

ARGS = [*TINY, *EVERY_STEP]


@pytest.fixture
def cut_short(run, copied):
    """A run killed in its 8th step, and the same run whole."""
    return copied(ARGS, code=-9, first=before_call(Classification, "training_step", 8))


@pytest.fixture
def whole(trained_once):
    return trained_once(ARGS)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {"truncated": lambda d: d[: len(d) // 2], "flipped bit": flip, "empty": lambda d: b"", "garbage": os.urandom}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(run, tmp_path, cut_short, whole, kind):
    path = (cut_short / "checkpoints/last.ckpt").resolve()
    data = path.read_bytes()
    path.write_bytes(DAMAGE[kind](data) if kind != "garbage" else os.urandom(len(data)))
    output = run([*ARGS, "--run_dir", cut_short])
    assert f"Not used: {path}" in output
    assert_same_end(cut_short, whole)


def test_all_damaged_begins_again(run, cut_short, whole):
    for path in (cut_short / "checkpoints").glob("step-*.ckpt"):
        path.write_bytes(flip(path.read_bytes()))
    output = run([*ARGS, "--run_dir", cut_short])
    assert output.count("Not used:") >= 2
    assert "going on" not in output
    assert_same_end(cut_short, whole)


class Malice:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICE"],)


def test_a_malicious_checkpoint_runs_no_code(run, cut_short, tmp_path, monkeypatch):
    monkeypatch.setenv("MALICE", str(tmp_path / "was here"))
    path = (cut_short / "checkpoints/last.ckpt").resolve()
    for manifest in (cut_short / "checkpoints").glob("*.json"):
        data = manifest.read_text()  # an attacker writes a fitting manifest, too
        target = manifest.with_suffix(".ckpt")
        torch.save({"state_dict": {}, "x": Malice()}, target)
        import hashlib

        fits = {"sha256": hashlib.sha256(target.read_bytes()).hexdigest(), "bytes": target.stat().st_size}
        manifest.write_text(json.dumps({**json.loads(data), **fits}))
    output = run([*ARGS, "--run_dir", cut_short], code=4)
    assert "not a file that can be read safely" in output
    assert not (tmp_path / "was here").exists()
    with open(path, "wb") as f:
        pickle.dump(Malice(), f)
    run([*ARGS, "--run_dir", cut_short], code=4)
    assert not (tmp_path / "was here").exists()


def test_a_checkpoint_of_another_network(run, cut_short):
    config = cut_short / "config.yaml"
    config.write_text(config.read_text().replace("- 16", "- 17"))
    flags = ["--model.network.widths", "[17]"]
    output = run([*ARGS, *flags, "--run_dir", cut_short], code=4)
    assert "another network" in output
    assert "network.head.weight" in output or "network.blocks" in output


def test_two_processes_cannot_train_in_one_folder(start, run, tmp_path):
    folder = tmp_path / "run"
    first = start(
        [*ARGS, "--run_dir", folder], first=before_call(Classification, "training_step", 3, lambda: time.sleep(60))
    )
    while not (folder / "config.yaml").exists():
        time.sleep(0.02)
    assert "another process is training there" in run([*ARGS, "--run_dir", folder], code=75)
    first.kill()
    assert first.wait() == -9
    run([*ARGS, "--run_dir", folder])


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_loses_nothing(run, small_disk, whole):
    big = ["--model.network.widths", "[16]", "--checkpoints.keep_last", 100]
    folder = small_disk / "run"
    output = run([*ARGS, *big, "--run_dir", folder], code=75)
    assert "No space left on device" in output
    path, refused = newest(folder / "checkpoints")
    assert path is not None
    assert refused == []
    subprocess.run(["mount", "-o", "remount,size=30m", small_disk], check=True)
    run([*ARGS, *big, "--run_dir", folder])
    assert_same_end(folder, whole)


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    output = run([*ARGS, "--run_dir", tmp_path / "file" / "run"], code=75)
    assert "cannot be written" in output
    assert len(output.splitlines()) == 1


def test_a_checkpoint_that_lost_its_manifest_or_has_anothers(run, cut_short, whole):
    *_, older, newest_ = sorted((cut_short / "checkpoints").glob("step-*.json"))
    older.write_text(newest_.read_text())
    newest_.unlink()
    output = run([*ARGS, "--run_dir", cut_short])
    assert f"Not used: {newest_.with_suffix('.ckpt')}: its manifest {newest_.name} is missing" in output
    assert f"Not used: {older.with_suffix('.ckpt')}: its manifest {older.name} is of another" in output
    assert_same_end(cut_short, whole)


@contextmanager
def immutable(folder):
    done = subprocess.run(["chattr", "+i", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs chattr: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


@contextmanager
def read_only(folder):
    for command in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
        done = subprocess.run(["mount", *command], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("locked", [immutable, read_only])
def test_checkpoints_that_cannot_be_written_are_found_at_the_start(run, tmp_path, locked):
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    with locked(folder):
        output = run([*ARGS, "--run_dir", tmp_path / "run"], code=75)
    assert "cannot be written" in output
    assert len(output.splitlines()) == 1
    run([*ARGS, "--run_dir", tmp_path / "run"])


@pytest.mark.parametrize("what", ["run", "run/checkpoints"])
@pytest.mark.parametrize("saving", [EVERY_STEP, ["--trainer.log_every_n_steps", 1]], ids=["saving", "logging"])
def test_a_folder_that_is_removed_while_training(run, tmp_path, what, saving):
    def remove():
        while (tmp_path / what).exists():  # the thread that saves may be at work there
            shutil.rmtree(tmp_path / what, ignore_errors=True)

    first = before_call(Classification, "training_step", 6, remove)
    output = run([*TINY, *saving, "--run_dir", tmp_path / "run"], code=75, first=first)
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: ")
    assert len([line for line in output.splitlines() if "error" in line]) == 1


def no_room():
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def too_large():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


@pytest.mark.parametrize("fault", ["quota, told at fsync", "quota, told at a new name", "file size limit"])
def test_other_ways_to_have_no_room(run, tmp_path, whole, fault):
    if fault == "file size limit":
        first = before_call(Classification, "training_step", 6, too_large)
    elif fault == "quota, told at fsync":
        first = before_call(os, "fsync", 30, no_room)
    else:
        first = before_call(Path, "symlink_to", 9, no_room)
    folder = tmp_path / "run"
    output = run([*ARGS, "--run_dir", folder], code=75, first=first)
    assert re.search("Disk quota exceeded|File too large", output.splitlines()[-1])
    assert newest(folder / "checkpoints")[0]
    assert not list(folder.rglob("*.tmp"))
    run([*ARGS, "--run_dir", folder])
    assert_same_end(folder, whole)


def test_a_full_folder_for_temporary_files_does_not_matter(start, run, tmp_path, small_disk, whole, monkeypatch):
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(10**6))
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = tmp_path / "run"
    assert start([*ARGS, "--run_dir", folder], first=in_write(3)).wait() == -9
    run([*ARGS, "--run_dir", folder])
    assert_same_end(folder, whole)


def test_the_only_valid_checkpoint_is_never_deleted(start, run, tmp_path, whole):
    folder, args = tmp_path / "run", [*ARGS, "--checkpoints.keep_last", 1]
    for number in range(8):
        hook = in_write(3, number / 7) if number % 2 else before_change(12 + number)
        assert start([*args, "--run_dir", folder], first=hook).wait() == -9
        if (folder / "checkpoints/last.ckpt").exists():
            assert newest(folder / "checkpoints")[0]
    run([*args, "--run_dir", folder])
    assert not list(folder.rglob("*.tmp"))
    assert_same_end(folder, whole)


def test_a_manifest_with_one_bit_flipped_is_found_whichever_it_is(run, tmp_path, cut_short):
    path = (cut_short / "checkpoints/last.ckpt").resolve()
    manifest = path.with_suffix(".json")
    text = manifest.read_bytes()
    passed = []
    for at in range(len(text)):
        manifest.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        if not checkpoint.damage(path):
            passed.append(chr(text[at]))
            assert {n: checkpoint.read_manifest(path)[n] for n in checkpoint.POSITION} == {
                n: json.loads(text)[n] for n in checkpoint.POSITION
            }
    assert set(passed) <= set(" crc32")  # of the checksum's own name, or a space: nothing that counts


def test_a_checkpoint_is_read_once_in_each_state(cut_short, monkeypatch):
    path, calls = (cut_short / "checkpoints/last.ckpt").resolve(), []
    digest = checkpoint.hashlib.file_digest
    monkeypatch.setattr(checkpoint.hashlib, "file_digest", lambda *args: calls.append(1) or digest(*args))
    assert [checkpoint.damage(path) for _ in range(3)] == [None] * 3
    assert len(calls) == 1
    path.write_bytes(flip(path.read_bytes()))
    assert checkpoint.damage(path) == "its bytes are not those that were written"


def test_metrics_that_are_garbage_do_not_stop_a_run(run, cut_short):
    (cut_short / "metrics.csv").write_bytes(os.urandom(2000) + b"\n\0\n1,2\n")
    run([*ARGS, "--run_dir", cut_short])
    assert len(rows(cut_short)) >= 2


@pytest.mark.parametrize("text", ["", "a: [", "text"])
def test_a_config_that_is_garbage_is_said_in_one_line(run, cut_short, text):
    (cut_short / "config.yaml").write_text(text)
    output = run([*ARGS, "--run_dir", cut_short], code=4)
    assert "config.yaml: damaged -> " in output
    assert "Traceback" not in output
