"""The journal's folder: found, made, recognised again, and refused while it is still as it was."""

import json
import os
import pwd
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchd import settings
from batchd.edge import folder as folder_module
from batchd.edge.folder import free_bytes, journal_folder, journal_id, open_folder, raise_epoch
from batchd.errors import JournalError, JournalFull, JournalNewer, JournalUnsafe, NotAJournal, UsageError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def meta_of(place: Path) -> dict[str, object]:
    return dict(json.loads((place / "journal.json").read_text()))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def everything_in(path: Path) -> list[tuple[str, int, bytes]]:
    return sorted((str(p), p.stat().st_mode, p.read_bytes() if p.is_file() else b"") for p in path.rglob("*"))


# --- Where it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explicit", "environ", "expected"),
    [
        ("/a", {"BATCHD_JOURNAL": "/b", "XDG_STATE_HOME": "/c", "HOME": "/h"}, "/a"),
        (None, {"BATCHD_JOURNAL": "/b", "XDG_STATE_HOME": "/c", "HOME": "/h"}, "/b"),
        (None, {"BATCHD_JOURNAL": "", "XDG_STATE_HOME": "/c", "HOME": "/h"}, "/c/batchd"),
        (None, {"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/batchd"),
        (None, {"HOME": "/h"}, "/h/.local/state/batchd"),
        ("~/j", {"HOME": "/h"}, "/h/j"),
        (None, {"BATCHD_JOURNAL": "~", "HOME": "/h"}, "/h"),
    ],
)
def test_the_nearest_name_wins(explicit: str | None, environ: dict[str, str], expected: str) -> None:
    assert journal_folder(explicit, environ) == Path(expected)


def test_a_relative_name_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert journal_folder("j", {}) == tmp_path / "j"


def test_an_empty_home_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # Root has an entry everywhere; a container's user may not.
    assert journal_folder(None, {"HOME": ""}) == Path(pwd.getpwuid(0).pw_dir) / ".local/state/batchd"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 987_654_321)
    with pytest.raises(UsageError, match="set BATCHD_JOURNAL"):
        journal_folder(None, {})


def test_an_empty_name_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="empty text"):
        journal_folder("", {"BATCHD_JOURNAL": "/b"})


# --- Made and recognised ---------------------------------------------------------------------------------------


def test_a_new_journal_belongs_to_its_user_alone(tmp_path: Path) -> None:
    place = tmp_path / "state" / "deep" / "journal"
    assert open_folder(place) == place.resolve()
    assert [mode_of(p) for p in (tmp_path / "state", place, place / "batches")] == [0o700] * 3
    assert mode_of(place / "journal.json") == 0o600
    assert names_in(place) == ["batches", "journal.json"]
    meta = meta_of(place)
    assert (meta["batchd_journal"], meta["epoch"], len(str(meta["id"]))) == (settings.FORMAT_VERSION, 0, 16)


def test_opening_again_changes_nothing(place: Path) -> None:
    open_folder(place)
    before = everything_in(place)
    assert open_folder(place, create=False) == place.resolve()
    assert open_folder(place) == place.resolve()
    assert everything_in(place) == before
    assert journal_id(place) == meta_of(place)["id"]


def test_a_missing_journal_is_not_made_for_a_reader(place: Path) -> None:
    with pytest.raises(JournalError, match=r"folder /proc/x/y cannot be made: nothing can be made in /proc\."):
        open_folder(Path("/proc/x/y"))
    with pytest.raises(JournalError, match=r"There is no journal at .*; it is created by the first `batchd run`"):
        open_folder(place, create=False)
    assert not place.exists()
    place.mkdir()
    with pytest.raises(JournalError, match="There is no journal at"):
        open_folder(place, create=False)
    assert names_in(place) == []


def test_what_a_start_that_was_cut_off_left_is_cleared(place: Path) -> None:
    place.mkdir(mode=0o700)
    (place / ".journal.json.0123456789abcdef").write_text("{")
    (place / "lost+found").mkdir()
    open_folder(place)
    assert names_in(place) == ["batches", "journal.json", "lost+found"]


def test_a_journal_whose_start_was_cut_off_gets_its_batches(place: Path) -> None:
    open_folder(place)
    (place / "batches").rmdir()
    open_folder(place)
    assert (place / "batches").is_dir()


def test_many_openers_at_once_agree_on_one_journal(place: Path) -> None:
    start, ids = threading.Barrier(8), []

    def opener() -> None:
        start.wait()
        ids.append(journal_id(open_folder(place)))

    threads = [threading.Thread(target=opener) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert set(ids) == {meta_of(place)["id"]}


def test_the_users_own_link_leads_to_the_journal(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_folder(tmp_path / "link") == (tmp_path / "real").resolve()


# --- The epoch -------------------------------------------------------------------------------------------------


def test_the_epoch_only_rises(place: Path) -> None:
    open_folder(place)
    before = meta_of(place)
    assert [raise_epoch(place) for _ in range(3)] == [1, 2, 3]
    assert meta_of(place) == {**before, "epoch": 3}
    assert names_in(place) == ["batches", "journal.json"]


def test_no_two_starts_share_an_epoch(place: Path) -> None:
    open_folder(place)
    epochs: list[int] = []
    threads = [threading.Thread(target=lambda: epochs.append(raise_epoch(place))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(1, 17))


def noting(calls: list[str], name: str) -> Callable[..., Any]:
    real = getattr(os, name)

    def call(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return real(*args, **options)

    return call


def test_the_epoch_is_on_disk_before_it_is_in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder(place)
    calls: list[str] = []
    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, noting(calls, name))
    raise_epoch(place)
    assert calls == ["fsync", "rename", "fsync"]


def test_an_epoch_needs_a_journal(place: Path) -> None:
    with pytest.raises(JournalError, match="There is no journal at"):
        raise_epoch(place)


# --- Refused ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("X13")
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "my journal"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(JournalUnsafe, match=r"run `chmod 700 '.*/my journal'`"):
        open_folder(place)
    assert names_in(place) == []
    place.chmod(0o700)
    open_folder(place)
    place.chmod(mode)
    with pytest.raises(JournalUnsafe):
        open_folder(place)


def test_a_folder_of_somebody_else_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 987_654_321)
    with pytest.raises(JournalUnsafe, match=r"belongs to .* as user 987654321; name a folder of your own"):
        open_folder(place)
    assert names_in(place) == []


@needs_root
def test_root_too_uses_only_its_own_folder(place: Path) -> None:
    open_folder(place)
    os.chown(place, 12_345, -1)
    with pytest.raises(JournalUnsafe, match="belongs to user 12345"):
        open_folder(place)


@pytest.mark.covers("X13")
@needs_root
def test_a_link_of_somebody_else_is_refused(tmp_path: Path) -> None:
    open_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.lchown(tmp_path / "link", 12_345, -1)
    with pytest.raises(JournalUnsafe, match="symbolic link of user 12345"):
        open_folder(tmp_path / "link")


@needs_user
def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(JournalError, match="cannot be used: Permission denied"):
        open_folder(tmp_path / "journal")


def test_a_folder_with_other_things_is_not_a_journal(place: Path) -> None:
    place.mkdir(mode=0o777)
    place.chmod(0o777)  # Even then no advice to change the mode: it may be everybody's.
    (place / "thesis.tex").write_text("precious")
    before = everything_in(place)
    with pytest.raises(NotAJournal, match=r"it holds 'thesis.tex' and no journal.json"):
        open_folder(place)
    assert everything_in(place) == before


def test_a_file_is_not_a_journal(place: Path) -> None:
    place.write_text("")
    with pytest.raises(NotAJournal, match="is not a folder"):
        open_folder(place)
    with pytest.raises(NotAJournal, match="is not a folder"):
        open_folder(place / "below")


@pytest.mark.covers("J7")
def test_a_newer_journal_names_both_versions(place: Path) -> None:
    open_folder(place)
    newer = settings.FORMAT_VERSION + 1
    (place / "journal.json").write_text(json.dumps({"batchd_journal": newer}))
    before = everything_in(place)
    with pytest.raises(JournalNewer, match=f"its format is {newer}, and .* up to {settings.FORMAT_VERSION};"):
        open_folder(place)
    assert everything_in(place) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b"[" * 60_000,
        b'{"batchd_journal": "1", "id": "a", "epoch": 0}',
        b'{"batchd_journal": true, "id": "a", "epoch": 0}',
        b'{"batchd_journal": 0, "id": "a", "epoch": 0}',
        b'{"batchd_journal": 1, "id": 5, "epoch": 0}',
        b'{"batchd_journal": 1, "id": "a", "epoch": -1}',
        b'{"batchd_journal": 1, "id": "a"}',
    ],
)
def test_a_damaged_journal_file_is_reported_and_left(place: Path, content: bytes) -> None:
    open_folder(place)
    (place / "journal.json").write_bytes(content)
    for use in (open_folder, raise_epoch, journal_id):
        with pytest.raises(NotAJournal, match=r"its journal\.json is damaged or not batchd's"):
            use(place)
    assert (place / "journal.json").read_bytes() == content


@pytest.mark.covers("X13")
def test_the_journal_file_may_not_be_a_link(place: Path, tmp_path: Path) -> None:
    open_folder(place)
    (place / "journal.json").rename(tmp_path / "elsewhere")
    (place / "journal.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAJournal):
        open_folder(place)


def test_a_link_that_leads_to_itself_is_reported(place: Path) -> None:
    place.symlink_to(place)
    with pytest.raises(JournalError):
        open_folder(place)


def test_a_full_disk_is_called_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder(place)

    def no_space(_fd: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(JournalFull, match="No space left"):
            raise_epoch(place)
    assert raise_epoch(place) == 1


# --- File systems ----------------------------------------------------------------------------------------------


def mounts(tmp_path: Path, *points: tuple[str, str]) -> Path:
    """Write a mountinfo file of (mount point, type) pairs, as the kernel writes it."""
    lines = [
        f"{20 + i} 1 0:{i} / {point} rw,relatime shared:1 - {kind} source rw"
        for i, (point, kind) in enumerate(points)
    ]
    path = tmp_path / "mountinfo"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse", "ceph", "glusterfs", "afs"]
)
@pytest.mark.covers("D7")
def test_a_network_file_system_is_refused_before_anything_is_made(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "a" / "journal"
    with pytest.raises(JournalUnsafe, match=f"file system \\({kind}\\).*--journal"):
        open_folder(place, mountinfo=mounts(tmp_path, ("/", "ext4"), (str(tmp_path), kind)))
    assert not (tmp_path / "a").exists()


def test_the_deepest_and_latest_mount_counts(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    escaped = str(spaced).replace(" ", "\\040")
    table = mounts(tmp_path, (str(tmp_path), "nfs"), (escaped, "nfs4"), (escaped, "xfs"), (f"{escaped}/jour", "cifs"))
    assert folder_module._file_system(spaced / "journal", table) == "xfs"
    assert folder_module._file_system(tmp_path / "c", table) == "nfs"
    assert folder_module._file_system(Path("/elsewhere"), table) == ""
    assert open_folder(spaced / "journal", mountinfo=table).is_dir()


def test_without_a_mount_table_the_folder_is_accepted(place: Path, tmp_path: Path) -> None:
    assert open_folder(place, mountinfo=tmp_path / "missing").is_dir()


def test_free_space_is_what_the_file_system_says(tmp_path: Path) -> None:
    usage = os.statvfs(tmp_path)
    assert 0 < free_bytes(tmp_path) <= usage.f_blocks * usage.f_frsize
