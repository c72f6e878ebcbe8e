"""Statistics of shards: each exactly once, in any order, and nothing else among them."""

import itertools
import json

import pytest
import torch
from typer.testing import CliRunner

import rankedit as rk
from rankedit.commands import own_commands
from rankedit.sharding import missing_in
from tests.problems import normal

WIDTH, SETTINGS = 6, {"length": 8}


def rows(shard, shards=4, *, total=400):
    data = normal(total, WIDTH, seed=5) @ normal(WIDTH, WIDTH, seed=6)
    return data[shard - 1 :: shards]


def write(folder, index, count=4, *, corpus="c", settings=None, data=None, **provenance):
    """The file of one shard, as a recipe writes it."""
    told = rk.Provenance(**{"model": "m", "corpus": corpus, "tokens": 10 * index, **provenance})
    moment = rk.SecondMoment(WIDTH, provenance=told)
    moment.update(rows(index, count) if data is None else data)
    mark = rk.Shard(index, count).mark(corpus, SETTINGS if settings is None else settings)
    path = folder / f"{index}-of-{count}-{len(list(folder.iterdir()))}.safetensors"
    texts = {"shard": mark, "edits_change": "0.5", "language": "statistics"}
    rk.save({"a": moment}, path, metadata=texts)
    return path


def test_the_sum_is_that_of_all_in_any_order_to_the_bit(tmp_path):
    files = [write(tmp_path, index) for index in (1, 2, 3, 4)]
    whole = rk.SecondMoment(WIDTH).update(rows(1, 1))
    merged = [rk.merge_shards(order) for order in itertools.permutations(files)]
    for one in merged:
        assert torch.equal(one["a"].packed(), merged[0]["a"].packed())
        assert one.metadata == merged[0].metadata
    got = merged[0]["a"]
    apart = (got.matrix - whole.matrix).norm() / whole.matrix.norm()
    assert float(apart) < 1e-12
    assert got.count == whole.count
    assert got.fourth == pytest.approx(whole.fourth, rel=1e-12)
    assert got.provenance == rk.Provenance(model="m", corpus="c", tokens=100)
    # What each held stays on record, and what is another one's is not lost.
    assert json.loads(merged[0].metadata["merged"]) == [[1, 10], [2, 20], [3, 30], [4, 40]]
    assert merged[0].metadata["language"] == "statistics"
    assert missing_in(merged[0].metadata["shard"]) == ([], 4)


def test_how_much_edits_change_is_measured_anew_and_scaled_to_a_tenth(tmp_path):
    files = [write(tmp_path, index) for index in (1, 2, 3, 4)]
    first = rk.SecondMoment(WIDTH)
    for index in (1, 2, 3):
        first.update(rows(index))
    whole = first.clone().update(rows(4))
    # A quarter was left out: √((1/9) / (1/3)) of what it changes is expected of a tenth.
    expected = rk.relative_change(first, whole) / 3**0.5
    assert float(rk.merge_shards(files).metadata["edits_change"]) == pytest.approx(
        expected, rel=1e-2
    )


def test_sums_of_some_are_merged_with_those_of_others(tmp_path):
    files = [write(tmp_path, index) for index in (1, 2, 3, 4)]
    for number, pair in enumerate((files[2::-2], files[3::-2])):
        with pytest.raises(rk.StatisticsError, match=r"2 of 4 shards are missing: \d"):
            rk.merge_shards(pair)
        rk.save_merged(rk.merge_shards(pair, partial=True), tmp_path / f"half-{number}")
    halves = [tmp_path / "half-1", tmp_path / "half-0"]
    both = rk.merge_shards(halves)
    assert float((both["a"].matrix - rk.merge_shards(files)["a"].matrix).norm()) < 1e-12
    assert sorted(json.loads(both.metadata["merged"])) == [[1, 10], [2, 20], [3, 30], [4, 40]]
    with pytest.raises(rk.StatisticsError, match=r"shard 3/4 is in .* and would count twice"):
        rk.merge_shards([*halves, files[2]])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"corpus": "d"}, "the same corpus, got c in .* and d in"),
        ({"settings": {"length": 9}}, "the same length, got 8 in .* and 9 in"),
        ({"settings": {"length": 8, "more": 1}}, "the same more, got None in .* and 1 in"),
        ({"count": 5}, "the same number of shards, got 4 in .* and 5 in"),
        ({"model": "n"}, "the same model, got 'm' and 'n'"),
        ({"weights": "w2"}, "the same weights"),
    ],
)
def test_others_are_refused(tmp_path, other, said):
    files = [write(tmp_path, index, weights="w1") for index in (1, 2)]
    files.append(write(tmp_path, 3, **{"weights": "w1", **other}))
    with pytest.raises(rk.StatisticsError, match=said):
        rk.merge_shards(files, partial=True)


def test_another_model_is_told_by_its_fingerprints(tmp_path):
    paths = []
    for index, seed in ((1, 0), (2, 1)):
        torch.manual_seed(seed)
        model = torch.nn.ModuleDict({"a": torch.nn.Linear(WIDTH, 2)})
        paths.append(write(tmp_path, index, 2))
        loaded = rk.load(paths[-1])
        rk.save(dict(loaded), paths[-1], metadata=loaded.metadata, model=model)
    with pytest.raises(rk.StatisticsError, match="the same model, got"):
        rk.merge_shards(paths)


def test_what_is_no_shard_or_no_list_is_refused(tmp_path):
    moment = rk.SecondMoment(WIDTH).update(rows(1))
    rk.save(moment, tmp_path / "x")
    with pytest.raises(rk.StatisticsError, match="says of itself that it is of none; collect"):
        rk.merge_shards([tmp_path / "x"])
    for damaged in ("no JSON", "{}", '{"shards":[0],"count":2,"corpus":"","settings":{}}'):
        rk.save(moment, tmp_path / "x", metadata={"shard": damaged})
        with pytest.raises(rk.EditFileError, match="its shard is damaged"):
            rk.merge_shards([tmp_path / "x"])
    for nothing in ([], "x"):
        with pytest.raises(rk.StatisticsError, match="paths must be a list of files"):
            rk.merge_shards(nothing)
    files = [write(tmp_path, index) for index in (1, 2)]
    loaded = rk.load(files[1])
    rk.save({"b": loaded["a"]}, files[1], metadata=loaded.metadata)
    with pytest.raises(rk.StatisticsError, match=r"must hold moments of \['a'\], got \['b'\]"):
        rk.merge_shards(files, partial=True)


class TestShard:
    @pytest.mark.parametrize("count", [1, 2, 7, 64])
    def test_everything_is_in_exactly_one(self, count):
        shards = [rk.Shard(index, count) for index in range(1, count + 1)]
        for number in range(3 * count + 1):
            assert sum(shard.takes(number) for shard in shards) == 1

    @pytest.mark.parametrize("text", ["0/4", "5/4", "1/0"])
    def test_none_of_them(self, text):
        with pytest.raises(rk.StatisticsError, match="counted from 1, ranks from 0"):
            rk.Shard.parse(text)

    @pytest.mark.parametrize("text", ["", "3", "3/", "-1/4", "a/b", "3.0/4", "3/4/5"])
    def test_no_shard(self, text):
        with pytest.raises(rk.StatisticsError, match="such as 3/64, or 'auto'"):
            rk.Shard.parse(text)

    @pytest.mark.parametrize(
        ("said", "shard"),
        [
            ({"RANK": "0", "WORLD_SIZE": "8"}, "1/8"),
            ({"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}, "8/8"),
            ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64",
              "SLURM_ARRAY_TASK_MIN": "1"}, "3/64"),
            ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "64",
              "SLURM_ARRAY_TASK_MIN": "0"}, "1/64"),
            ({"SLURM_ARRAY_TASK_ID": "50", "SLURM_ARRAY_TASK_COUNT": "4",
              "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "20"}, "3/4"),
            # torchrun on one process inside of an array job: the array is what divides.
            ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_ARRAY_TASK_ID": "2",
              "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}, "2/3"),
        ],
    )  # fmt: skip
    def test_what_launchers_say(self, said, shard):
        assert str(rk.Shard.parse("auto", said)) == shard

    def test_launchers_that_say_nothing_or_two_things(self):
        with pytest.raises(rk.StatisticsError, match=r"environment says nothing\. Name the p"):
            rk.Shard.parse("auto", {"RANK": "1"})
        both = {"RANK": "0", "WORLD_SIZE": "2", "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "3"}  # fmt: skip
        with pytest.raises(rk.StatisticsError, match="the environment says 1/2 and 1/3"):
            rk.Shard.parse("auto", both)
        with pytest.raises(rk.StatisticsError, match="RANK must be a whole number, got 'x'"):
            rk.Shard.parse("auto", {"RANK": "x", "WORLD_SIZE": "2"})


def run(*arguments):
    return CliRunner().invoke(own_commands(), list(map(str, arguments)))


def test_the_command_merges_and_says_what_to_type(tmp_path):
    files = [write(tmp_path, index) for index in (1, 2, 3)]
    out = tmp_path / "sum.safetensors"
    refused = run("stats", "merge", *files, "--out", out)
    assert "1 of 4 shards are missing: 4; collect them, or add --partial" in str(refused.exception)
    assert not out.exists()
    done = run("stats", "merge", *files, "--out", out, "--partial")
    assert done.exit_code == 0
    assert "second moment, width 6, 300 vectors" in done.output
    assert "is there already; add --overwrite" in str(
        run("stats", "merge", *files, "--out", out, "--partial").exception
    )
    nowhere = run("stats", "merge", *files, "--out", tmp_path / "no" / "x", "--partial")
    assert "there is no folder" in str(nowhere.exception)


def test_what_is_missing_is_warned_of_where_it_is_used(tmp_path):
    from rankedit.sharding import warn_of_missing

    mark = rk.merge_shards([write(tmp_path, 2), write(tmp_path, 4)], partial=True).metadata["shard"]
    with pytest.warns(rk.RankeditWarning, match="'f' holds 2 of 4 shards of its data; merge all"):
        warn_of_missing("load_statistics", "f", mark)
    with pytest.raises(rk.StatisticsError, match="of its shards is damaged"):
        missing_in("{}")
    assert missing_in("") == ([], 0)
