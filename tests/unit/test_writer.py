"""The atomic writer: what stands in the folder, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit import swap, writer
from vlmc.emit.artifact import Artifact, Deferred, Text, Weights
from vlmc.emit.lock import Busy, locked
from vlmc.emit.manifest import NAME, Manifest, Predictions
from vlmc.emit.record import File, Status

DRIVER = Path(__file__).parent / "kill_driver.py"
MEMORY = Path("/dev/shm")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def describe(files: dict[str, File], statuses: dict[str, Status]) -> Manifest:
    predictions = Predictions(parameters=1, trainable=1, by_part={}, tokens={})
    return Manifest(
        version="0",
        name="x",
        origin="x.yaml",
        mini=False,
        spec_sha256="0" * 64,
        files=files,
        artifacts=statuses,
        predictions=predictions,
    )


def texts(**contents: str) -> list[Artifact]:
    return [Text(path=name.replace("_", "."), text=text) for name, text in contents.items()]


def weights(data: bytes = b"1", source: str = "seed 0", times: list[int] | None = None) -> Weights:
    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)
        if times is not None:
            times.append(1)

    def fits(folder: Path) -> bool:
        return (folder / "model.safetensors").exists()

    return Weights(path="weights", source=source, write=fill, fits=fits)


def write(folder: Path, artifacts: list[Artifact]) -> Manifest:
    return writer.write(folder, artifacts, describe)


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, inode and time of every file."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes(),
            path.stat().st_ino,
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def nothing_beside(folder: Path) -> bool:
    return [path.name for path in folder.parent.iterdir() if path != folder] == []


@pytest.fixture(params=["exchange", "journal"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder to build, with an atomic exchange and without; nothing is ever left beside it."""
    if request.param == "journal":
        monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    place = tmp_path / "out"
    yield place
    assert nothing_beside(place)


# -- killed at any moment --------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("way", ["exchange", "journal"])
@pytest.mark.parametrize("moments", ["random", "every"])
def test_killed_at_any_moment_it_leaves_one_complete_build(
    way: str, moments: str, tmp_path: Path
) -> None:
    # Every single call is tried in memory, fifty random moments on the disk.
    parent = MEMORY / f"vlmc-{os.getpid()}" if moments == "every" and MEMORY.is_dir() else tmp_path
    parent.mkdir(exist_ok=True)
    try:
        command = [sys.executable, str(DRIVER), str(parent / "out"), moments, way]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    finally:
        if parent != tmp_path:
            shutil.rmtree(parent)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= 40
    assert counts["half_made"] >= 10, "the kills missed the builds"
    if moments == "every":
        assert (counts["journals"] > 0) == (way == "journal")


# -- what is rewritten -----------------------------------------------------------------------------


def test_a_build_is_what_its_manifest_says(folder: Path) -> None:
    manifest = write(folder, [*texts(a_txt="one", b_txt="two"), weights()])
    assert sorted(tree(folder)) == ["a.txt", "b.txt", NAME, "weights/model.safetensors"]
    assert manifest.verify(folder) == []
    assert Manifest.read(folder) == manifest
    (folder / "a.txt").write_text("eno")
    assert manifest.verify(folder) == ["a.txt has changed since it was built: 3 bytes"]


def test_an_unchanged_build_is_not_touched(folder: Path) -> None:
    made: list[int] = []
    write(folder, [*texts(a_txt="one"), weights(times=made)])
    before, place = tree(folder), folder.stat()
    again = write(folder, [*texts(a_txt="one"), weights(times=made)])
    assert again.unchanged
    assert tree(folder) == before
    assert (folder.stat().st_ino, folder.stat().st_mtime_ns) == (place.st_ino, place.st_mtime_ns)
    assert made == [1]


def test_what_has_not_changed_is_kept_as_it_is(folder: Path) -> None:
    made: list[int] = []
    write(folder, [*texts(a_txt="one", b_txt="two"), weights(times=made)])
    before = tree(folder)
    manifest = write(folder, [*texts(a_txt="ONE", b_txt="two"), weights(times=made)])
    after = tree(folder)
    assert not manifest.unchanged
    assert after["a.txt"][0] == b"ONE"
    for kept in ("b.txt", "weights/model.safetensors"):
        assert after[kept] == before[kept]
    assert made == [1]


def test_weights_of_another_source_are_made_again(folder: Path) -> None:
    write(folder, [*texts(a_txt="one"), weights(b"1")])
    write(folder, [*texts(a_txt="one"), weights(b"2", source="seed 1")])
    assert tree(folder)["weights/model.safetensors"][0] == b"2"


def test_damaged_weights_are_made_again(folder: Path) -> None:
    write(folder, [*texts(a_txt="one"), weights(b"1")])
    path = folder / "weights" / "model.safetensors"
    path.write_bytes(b"x")
    os.utime(path, ns=(time.time_ns() + 10**9, time.time_ns() + 10**9))
    assert not write(folder, [*texts(a_txt="one"), weights(b"1")]).unchanged
    assert path.read_bytes() == b"1"


@pytest.mark.parametrize("fits", [True, False])
def test_deferred_weights_leave_those_of_an_earlier_build_where_they_fit(
    folder: Path, fits: bool
) -> None:
    write(folder, [*texts(a_txt="one"), weights()])
    later = Deferred(path="weights", reason="none", command="vlmc", fits=lambda folder: fits)
    manifest = write(folder, [*texts(a_txt="two"), later])
    assert manifest.artifacts["weights"].status == ("built" if fits else "deferred")
    assert (folder / "weights").exists() == fits


@pytest.mark.parametrize("fits", [True, False])
def test_deferred_weights_that_were_changed_are_not_removed(folder: Path, fits: bool) -> None:
    write(folder, [*texts(a_txt="one"), weights()])
    path = folder / "weights" / "model.safetensors"
    path.write_bytes(b"trained")
    before = tree(folder)
    later = Deferred(path="weights", reason="none", command="vlmc x", fits=lambda folder: fits)
    with pytest.raises(EnvironmentFault, match="has changed since it was built") as raised:
        write(folder, [*texts(a_txt="two"), later])
    assert f"{path} " in str(raised.value)
    assert "(none): move it away, or write it anew with vlmc x" in str(raised.value)
    assert tree(folder) == before
    path.rename(folder.parent / "trained")
    assert write(folder, [*texts(a_txt="two"), later]).artifacts["weights"].status == "deferred"
    (folder.parent / "trained").unlink()


def test_a_file_that_is_built_no_longer_goes(folder: Path) -> None:
    write(folder, texts(a_txt="one", b_txt="two"))
    write(folder, texts(a_txt="one"))
    assert sorted(tree(folder)) == ["a.txt", NAME]


def test_an_edited_file_of_ours_is_made_again(folder: Path) -> None:
    write(folder, texts(a_txt="one"))
    (folder / "a.txt").write_text("edited")
    assert not write(folder, texts(a_txt="one")).unchanged
    assert (folder / "a.txt").read_text() == "one"


# -- what is not ours ------------------------------------------------------------------------------


def test_files_that_no_build_wrote_stay(folder: Path) -> None:
    write(folder, [*texts(a_txt="one"), weights()])
    (folder / "notes.txt").write_text("mine")
    (folder / "runs" / "deep").mkdir(parents=True)
    (folder / "runs" / "deep" / "log").write_text("mine too")
    (folder / "runs" / "none").mkdir()
    (folder / "weights" / "old.bin").write_text("mine as well")
    (folder / "link").symlink_to("nowhere")
    later = Deferred(path="weights", reason="none", command="vlmc", fits=lambda folder: False)
    write(folder, [*texts(a_txt="two"), later])
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "runs" / "deep" / "log").read_text() == "mine too"
    assert (folder / "runs" / "none").is_dir()
    assert (folder / "weights" / "old.bin").read_text() == "mine as well"
    assert os.readlink(folder / "link") == "nowhere"
    assert not (folder / "weights" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_file_of_the_user_is_not_overwritten_by_a_new_artifact(folder: Path, kind: str) -> None:
    write(folder, texts(a_txt="one"))
    mine = folder / "b.txt"
    if kind == "file":
        mine.write_text("mine")
    elif kind == "folder":
        (mine / "inner").mkdir(parents=True)
    else:
        mine.symlink_to("a.txt")
    with pytest.raises(EnvironmentFault, match="is not vlmc's"):
        write(folder, texts(a_txt="two", b_txt="ours"))
    assert (folder / "a.txt").read_text() == "one"
    assert mine.is_dir() if kind == "folder" else mine.is_symlink() or mine.read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"generator": "vlmc"}',
        b'{"schema": 99, "generator": "vlmc"}',
        b"[" * 100_000,
        None,
    ],
    ids=lambda content: "none" if content is None else repr(content[:12]),
)
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    if content is not None:
        (place / NAME).write_bytes(content)
    before = tree(place)
    with pytest.raises(EnvironmentFault, match="is not empty and not a build of vlmc"):
        write(place, texts(a_txt="one"))
    assert tree(place) == before
    assert nothing_beside(place)


def test_an_empty_folder_may_be_taken(folder: Path) -> None:
    folder.mkdir()
    write(folder, texts(a_txt="one"))
    assert (folder / "a.txt").exists()


def test_places_that_no_build_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "user").mkdir(parents=True)
    (tmp_path / "work" / "here").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "user"))
    monkeypatch.chdir(tmp_path / "work" / "here")
    before = sorted(path for path in tmp_path.rglob("*"))
    places = ["/", ".", "..", "../../home/user", "../../home", "../../file", "../../link"]
    for place in [*places, "../../dangling", "../../file/below", "nul\0l"]:
        with pytest.raises(EnvironmentFault) as raised:
            write(Path(place), texts(a_txt="one"))
        assert "--output" in str(raised.value), raised.value
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_the_folder_above_the_present_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", texts(a_txt="one"))
    (tmp_path / "out" / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "out" / "runs")
    for place in ("..", tmp_path / "out"):
        with pytest.raises(EnvironmentFault, match="the folder that you are in"):
            write(Path(place), texts(a_txt="two"))


@linux
def test_a_mount_point_is_not_taken() -> None:
    with pytest.raises(EnvironmentFault, match="mount point"):
        write(Path("/proc"), texts(a_txt="one"))


# -- two builds of one folder ----------------------------------------------------------------------


def test_a_second_build_of_a_folder_is_refused_and_told_who_builds_it(tmp_path: Path) -> None:
    place = tmp_path / "out"
    write(place, texts(a_txt="one"))
    program = (
        "import sys; from pathlib import Path; from vlmc.emit.lock import locked\n"
        "with locked(Path(sys.argv[1]), Path('x')):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    lock = swap.Places(place).lock
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=rf"built by process {other.pid}"):
            write(place, texts(a_txt="two"))
        assert (place / "a.txt").read_text() == "one"
        other.kill()
    assert lock.exists()  # its file is left, its lock is gone
    write(place, texts(a_txt="two"))
    assert nothing_beside(place)


def test_a_lock_is_free_again_after_a_failure(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(RuntimeError), locked(lock, tmp_path):
        raise RuntimeError
    assert not lock.exists()
    with locked(lock, tmp_path), pytest.raises(Busy), locked(lock, tmp_path):
        pass


# -- what the system refuses -----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting needs privileges; the limit on file sizes is tried instead")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def refused(place: Path, artifacts: list[Artifact], words: str) -> None:
    """The old build stands after a failure that says `words`, and nothing lies beside it."""
    write(place, texts(a_txt="one"))
    before = tree(place)
    with pytest.raises(EnvironmentFault, match=words):
        write(place, artifacts)
    assert tree(place) == before
    assert nothing_beside(place)


@linux
@pytest.mark.parametrize("what", ["text", "weights"])
def test_a_full_disk(small_disk: Path, what: str) -> None:
    large: Artifact = weights(b"1" * 400_000)
    if what == "text":
        large = Text(path="b.txt", text="2" * 400_000)
    refused(small_disk / "out", [*texts(a_txt="two"), large], "the disk is full")


@pytest.fixture
def file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_limit")
def test_a_file_beyond_the_limit(tmp_path: Path) -> None:
    large = [*texts(a_txt="two"), weights(b"1" * 400_000)]
    refused(tmp_path / "out", large, "larger than this system allows")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255), texts(a_txt="one"))
    with pytest.raises(EnvironmentFault, match="too long"):
        write(tmp_path / ("y" * 256), texts(a_txt="one"))
    with pytest.raises(EnvironmentFault, match="too long"):
        write(tmp_path / "z", [Text(path="y" * 256, text="")])
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]


def unprivileged(action: Callable[[], None]) -> None:
    """Runs `action` in a child that is not root, where this process is."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            action()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside torch's threads
def test_a_read_only_folder() -> None:
    # Not in `tmp_path`: another user could not even look into it.
    parent = Path(tempfile.mkdtemp(prefix="vlmc-"))
    write(parent / "out", texts(a_txt="one"))
    before = tree(parent / "out")
    parent.chmod(0o555)

    def attempt() -> None:
        with pytest.raises(EnvironmentFault, match="this user may not"):
            write(parent / "out", texts(a_txt="two"))

    try:
        unprivileged(attempt)
        assert tree(parent / "out") == before
        assert nothing_beside(parent / "out")
    finally:
        parent.chmod(0o755)
        shutil.rmtree(parent)


def test_a_failure_while_weights_are_made_leaves_the_old_build(folder: Path) -> None:
    def fail(target: Path) -> None:
        (target / "half").write_bytes(b"1")
        raise KeyboardInterrupt

    broken = Weights(path="weights", source="x", write=fail, fits=lambda folder: True)
    write(folder, texts(a_txt="one"))
    with pytest.raises(KeyboardInterrupt):
        write(folder, [*texts(a_txt="two"), broken])
    assert sorted(tree(folder)) == ["a.txt", NAME]


def test_a_folder_made_while_a_swap_was_cut_off_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    write(place, texts(a_txt="one"))
    monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    real = os.rename

    def die_after_stepping_aside(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target) == swap.Places(place).former:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", die_after_stepping_aside)
    with pytest.raises(KeyboardInterrupt):
        write(place, texts(a_txt="two"))
    monkeypatch.setattr(os, "rename", real)
    place.mkdir()
    (place / "mine").write_text("mine")
    with pytest.raises(EnvironmentFault, match="move it away"):
        write(place, texts(a_txt="three"))
    (place / "mine").rename(tmp_path / "mine")
    place.rmdir()
    assert Manifest.read(place).verify(place) == []
    assert (place / "a.txt").read_text() == "two"


def test_without_hard_links_files_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    write(folder, [*texts(a_txt="one"), weights()])
    (folder / "notes.txt").write_text("mine")
    assert write(folder, [*texts(a_txt="two"), weights()]).verify(folder) == []
    assert (folder / "notes.txt").read_text() == "mine"


def test_where_a_folder_cannot_be_renamed_it_is_replaced_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    write(place, texts(a_txt="one"))
    (place / "notes.txt").write_text("mine")
    monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    real = os.rename

    def as_overlay(source: Path, target: Path) -> None:
        if Path(source) == place:
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "rename", as_overlay)
    assert write(place, texts(a_txt="two")).verify(place) == []
    assert (place / "notes.txt").read_text() == "mine"
    assert nothing_beside(place)
