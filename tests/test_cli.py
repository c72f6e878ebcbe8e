"""The `rankedit` command."""

import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import rankedit as rk
from rankedit import cli, commands

runner = CliRunner()


@pytest.fixture
def edit_file(tmp_path: Path) -> Path:
    path = tmp_path / "edits.safetensors"
    keys = torch.eye(4)[:2]
    items = {
        "static": rk.LowRank(torch.ones(3, 1), torch.ones(1, 4)),
        "gated": rk.GatedEdit(keys, torch.ones(2, 3), rk.Metric.identity(4)),
        "statistics": rk.SecondMoment(4).update(torch.randn(10, 4)),
    }
    rk.save(items, path, metadata={"note": "for the test"})
    return path


def test_info_describes_every_item(edit_file: Path) -> None:
    result = runner.invoke(cli.application(), ["info", str(edit_file)])
    assert result.exit_code == 0, result.output
    assert "3 items" in result.output
    assert "note: for the test" in result.output
    assert "static: low-rank edit 4 to 3, rank 1" in result.output
    assert "gated: gated edit 4 to 3, 2 keys, Sigmoid(" in result.output
    assert "statistics: second moment, width 4, 10 vectors" in result.output


def test_a_damaged_file_ends_with_one_line(
    edit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_file.write_bytes(edit_file.read_bytes()[:-1])
    monkeypatch.setattr("sys.argv", ["rankedit", "info", str(edit_file)])
    with pytest.raises(SystemExit, match=r"rankedit: load: .* Nothing was loaded"):
        cli.main()


def test_warnings_are_one_line_without_file_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn() -> None:
        warnings.simplefilter("always")
        warnings.warn("look\nout", rk.RankeditWarning, stacklevel=1)
        path = "/lib/site-packages/diffusers/pipelines/loading.py"
        warnings.warn_explicit("no such dtype\nand more", UserWarning, path, 7)
        warnings.warn_explicit("will go", FutureWarning, path, 8)

    monkeypatch.setattr(cli, "application", lambda: warn)
    monkeypatch.setattr("sys.warnoptions", [])
    cli.main()
    said = "rankedit: warning: look out\nrankedit: warning of diffusers: no such dtype\n"
    assert capsys.readouterr().err == said
    monkeypatch.setattr("sys.warnoptions", ["always"])
    cli.main()
    assert capsys.readouterr().err == said + "rankedit: warning of diffusers: will go\n"


def _entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, commands.GROUP)


def test_recipes_plug_in_and_a_broken_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [_entry("works", "tests_recipe:app"), _entry("broken", "no_such_module:app")]
    app = typer.Typer()
    app.command("hello")(lambda: typer.echo("hello from the recipe"))
    app.callback()(lambda: None)
    for module in (cli, commands):
        monkeypatch.setattr(module, "entry_points", lambda group: entries)
    monkeypatch.setattr(
        EntryPoint, "load", lambda self: app if self.name == "works" else _fail(self.value)
    )
    result = runner.invoke(cli.application(), ["works", "hello"])
    assert "hello from the recipe" in result.output
    listed = runner.invoke(cli.application(), ["recipes"])
    assert "broken\tno_such_module:app" in listed.output


def _fail(value: str) -> None:
    raise ModuleNotFoundError(f"No module named {value!r}")
