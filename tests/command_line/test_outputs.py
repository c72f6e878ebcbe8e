"""Outputs are looked at before anything is done, and written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.command_line.outputs import folder_aside, picture_files, prepare_outputs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder=Path()):
    return sorted(path.name for path in folder.iterdir())


def prepare(**outputs):
    prepare_outputs("learn", **outputs)


def test_folders_are_made_and_nothing_else(here):
    prepare(
        files={"--out": Path("a/b/c.safetensors"), "--report": None},
        folders={"--fuse": Path("d/model")}, growing={"--run": Path("e/run")},
    )  # fmt: skip
    assert sorted(str(p.relative_to(here)) for p in here.rglob("*")) == [
        "a", "a/b", "d", "e", "e/run",
    ]  # fmt: skip


def test_what_is_there_stays_unless_it_may_go(here):
    Path("c.safetensors").write_text("old")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("run").mkdir()
    Path("run/checkpoint").write_text("")
    with pytest.raises(
        CommandError, match=r"^learn: 'c.safetensors' is there already; add --overw"
    ):
        prepare(files={"--out": Path("c.safetensors")})
    with pytest.raises(CommandError, match=r"'model' is there already.*or give another --fuse"):
        prepare(folders={"--fuse": Path("model")})
    prepare(growing={"--run": Path("run")})
    prepare(
        files={"--out": Path("c.safetensors")}, folders={"--fuse": Path("model")}, overwrite=True
    )
    assert Path("c.safetensors").read_text() == "old"
    Path("empty").mkdir()
    prepare(folders={"--fuse": Path("empty")})


def test_one_refusal_and_nothing_is_made(here):
    Path("taken").write_text("")
    with pytest.raises(CommandError, match="is there already"):
        prepare(files={"--out": Path("new/c"), "--report": Path("taken")})
    assert names() == ["taken"]


def test_outputs_of_another_kind(here):
    Path("folder").mkdir()
    Path("file").write_text("")
    for overwrite in (False, True):
        with pytest.raises(CommandError, match=r"--out must be a file, but 'folder' is a folder"):
            prepare(files={"--out": Path("folder")}, overwrite=overwrite)
        for kind in ("folders", "growing"):
            with pytest.raises(CommandError, match=r"--x must be a folder, but 'file' is a file"):
                prepare(**{kind: {"--x": Path("file")}}, overwrite=overwrite)
        with pytest.raises(CommandError, match=r"'file/deep' cannot be made, for 'file' is a file"):
            prepare(files={"--out": Path("file/deep/c")}, overwrite=overwrite)


def test_two_outputs_of_one_name():
    with pytest.raises(CommandError, match=r"--out and --report are both 'a/../b'"):
        prepare(files={"--out": Path("b"), "--report": Path("a/../b")})


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is allowed to root")
def test_a_folder_that_cannot_be_written(here):
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(CommandError, match="no permission to write in 'locked'"):
        prepare(files={"--out": Path("locked/c")})


def test_a_folder_is_whole_or_as_it_was(here):
    target = Path("model")
    with folder_aside(target) as aside:
        (aside / "one").write_text("1")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), folder_aside(target) as aside:
        (aside / "no folder" / "two").write_text("2")
    assert names(target) == ["one"]
    with folder_aside(target) as aside:
        (aside / "three").write_text("3")
    assert names(target) == ["three"]
    assert names() == ["model"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_name(here, monkeypatch):
    target = Path("model")
    target.mkdir()
    (target / "old").write_text("")
    rename = Path.rename

    def refusing(self, other):
        if ".old-" not in f"{self}{other}":
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="no"), folder_aside(target) as aside:
        (aside / "new").write_text("")
    assert names(target) == ["old"]
    assert names() == ["model"]


@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_between_the_renames_loses_neither_folder(here, monkeypatch, at):
    target, rename, calls = Path("model"), Path.rename, []
    target.mkdir()
    (target / "old").write_text("")

    def interrupted(self, other):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), folder_aside(target) as aside:
        (aside / "new").write_text("")
    assert names(target) == ["old"]
    assert names() == ["model"]


def test_an_old_folder_that_cannot_be_put_back_stays_beside(here, monkeypatch):
    target, rename = Path("model"), Path.rename
    target.mkdir()
    (target / "old").write_text("")

    def refusing(self, other):
        if Path(other) == target:
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="no"), folder_aside(target) as aside:
        (aside / "new").write_text("")
    assert "old" in [file.name for folder in here.iterdir() for file in folder.iterdir()]


def test_names_of_pictures():
    assert [str(f) for f in picture_files(Path("p"), 2, range(3, 5))] == [
        "p/00-seed3.png", "p/00-seed4.png", "p/01-seed3.png", "p/01-seed4.png",
    ]  # fmt: skip
