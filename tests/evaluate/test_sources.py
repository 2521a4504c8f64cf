"""Several sources of held-out rows, of which one may be a share of the training rows: on real ranks."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from dist_sft.checkpoint.layout import Manifest, folder_of, newest, whole_steps
from dist_sft.core.errors import ConfigError
from dist_sft.run.data import RunData
from dist_sft.run.folder import refuse_changes
from dist_sft.run.opened import open_run
from tests.ranks import losses, records, train_on_ranks

pytestmark = pytest.mark.xdist_group("stops")

STEPS, SHARE = 6, 0.15
PATIENT = {"patience": 2, "decides": "noise"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training rows, some of one question; and held-out rows of two kinds, the second of which nobody can learn."""
    from dist_sft.demo.dataset import conversations

    folder = tmp_path_factory.mktemp("sources")
    made = [list(row.messages) for row in conversations(seed=6, count=76, held_out=False)]
    asked = [next(turn["content"] for turn in messages if turn["role"] == "user") for messages in made]
    again = [[{"role": "user", "content": f" {text.upper()}"}, {"role": "assistant", "content": "x"}] for text in asked]
    noise = [
        [messages[0], {"role": "assistant", "content": "Zx" * (1 + i % 3) + "Qj"}] for i, messages in enumerate(again)
    ]
    for messages in made[60:65]:
        messages[-1] = messages[-1] | {"loss_weight": 0.25}
    rows = {"train": made[:60], "again": again[:60], "math": made[60:], "noise": noise[60:66]}
    for name, chats in rows.items():
        lines = (json.dumps({"messages": messages, "tag": f"t{i % 2}"}) for i, messages in enumerate(chats))
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def settings(tiny_run, files, tmp_path_factory):
    """A function: name, eval -> a run. Its held-out sources: eval.sources of these names."""
    folder = tmp_path_factory.mktemp("runs")
    sources = [{"path": str(files / "train.jsonl"), "weight": 2}, {"path": str(files / "again.jsonl"), "weight": 1}]

    def run(name, *held_out, world=1, **evaluation):
        given = [{"name": each, "path": str(files / f"{each}.jsonl")} for each in held_out]
        train = {"samples_per_step": 10, "steps": STEPS, "learning_rate": 0.003, "schedule": "constant", "warmup": 0}
        return tiny_run | {
            "run": {"name": "sources", "dir": str(folder / name)},
            "data": tiny_run["data"] | {"sources": sources},
            "train": tiny_run["train"] | train,
            "eval": {"sources": given, "every": 1} | evaluation,
            "checkpoint": {"every": 1, "keep": 99},
            "cluster": {"workers": world, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": 3 if world > 1 else 0}},
            "tracking": {"group_by": "tag"},
            "learned": str(folder / f"{name} learned"),
        }

    return run


@pytest.fixture(scope="module")
def runs(settings):
    """Folders of runs by name: each source alone and both on one rank, and with a share; the same on two ranks; two
    that may stop early; and resumed on two ranks, one of these before its last step and one with a share after its
    first."""
    both = ("math", "noise")
    one = {
        "math": settings("math", "math", samples=12),
        "noise": settings("noise", "noise", samples=12),
        "both": settings("both", *both, samples=12),
        "share": settings("share", share=SHARE),
        "all": settings("all", *both, share=SHARE),
        "mean": settings("mean", *both, patience=2),
        "decided": settings("decided", *both, **PATIENT),
    }
    two = {
        "both on two": settings("both on two", *both, samples=12, world=2),
        "all on two": settings("all on two", *both, share=SHARE, world=2),
        "all again": settings("all again", *both, share=SHARE, world=2),
        "decided again": settings("decided again", *both, world=2, **PATIENT),
    }
    two["decided again"]["checkpoint"] |= {"keep": 1, "keep_best": 1}
    folders = {name: Path(run["run"]["dir"]) for name, run in {**one, **two}.items()}
    train_on_ranks(list(one.values()), 1)
    for name, lost in (("all", STEPS - 1), ("decided", 1)):
        again = folders[f"{name} again"]
        shutil.copytree(folders[name], again)
        for later in whole_steps(again / "checkpoints")[-lost:]:
            shutil.rmtree(folder_of(again / "checkpoints", later))
    train_on_ranks(list(two.values()), 2)
    return folders


def losses_of(folder, name):
    """Of one source, by evaluation."""
    return [
        next(group["loss"] for group in record["groups"] if (group["by"], group["name"]) == ("source", name))
        for record in records(folder, "eval")
    ]


def data_of(run):
    return RunData.of(open_run({key: value for key, value in run.items() if key != "learned"}))


def learned(folder):
    """By step, the (source, row) of each sample, on whatever rank."""
    found = {}
    for path in sorted(folder.with_name(f"{folder.name} learned").iterdir()):
        for step, rows in json.loads(path.read_text()).items():
            found.setdefault(int(step), []).extend(map(tuple, rows))
    return {step: sorted(rows) for step, rows in sorted(found.items())}


def test_the_loss_of_each_source_is_the_one_that_it_has_alone(runs):
    for name in ("math", "noise"):
        alone = [record["loss"] for record in records(runs[name], "eval")]
        assert len(alone) == 1 + STEPS
        assert losses_of(runs["both"], name) == pytest.approx(alone, rel=1e-6)
        on_two = losses_of(runs["both on two"], name)
        assert on_two[0] == pytest.approx(alone[0], rel=1e-6) and on_two == pytest.approx(alone, rel=1e-4)
    alone = losses_of(runs["share"], "held_out")
    assert losses_of(runs["all"], "held_out") == pytest.approx(alone, rel=1e-6)
    assert losses_of(runs["all on two"], "held_out")[0] == pytest.approx(alone[0], rel=1e-6)


def test_the_loss_of_all_counts_each_supervised_token_as_much(runs):
    """But for its own weight, which some rows of math have."""
    for record in records(runs["all"], "eval") + records(runs["all on two"], "eval"):
        groups = [group for group in record["groups"] if group["by"] == "source"]
        assert [group["name"] for group in groups] == ["math", "noise", "held_out"]
        mean = sum(group["loss"] * group["weight"] for group in groups) / sum(group["weight"] for group in groups)
        assert record["loss"] == pytest.approx(mean, rel=1e-6)
        assert record["tokens"] == sum(group["tokens"] for group in groups)
        assert [group["weight"] < group["tokens"] for group in groups] == [True, False, False]
        tags = [group for group in record["groups"] if group["by"] == "tag"]
        assert {tag["name"] for tag in tags} == {"t0", "t1"} and sum(tag["tokens"] for tag in tags) == record["tokens"]


def test_what_a_share_holds_out_is_never_trained_and_all_else_is_as_it_would_be(runs, settings):
    """The rows are those of the updates themselves, on one rank and on two."""
    found = data_of(settings("x", share=SHARE))
    held = {(source, row) for source, rows in enumerate(found.held.rows) for row in rows.tolist()}
    assert {row for source, row in held if source == 0} == {row for source, row in held if source == 1}, "questions"
    assert 10 < len(held) < 50 and any(held.intersection(rows) for rows in learned(runs["both"]).values())
    expected = {step: sorted((s.source, s.row) for s in found.train.steps.samples(step)) for step in range(STEPS)}
    feeds = pickle.loads(pickle.dumps(found.feeds))  # as members of the data service get them
    assert [sorted((s.source, s.row) for s in feeds["train"].steps.samples(i)) for i in range(STEPS)] == [
        *expected.values()
    ]
    assert feeds["held_out"].chunk(0, 9)[1].tokens.tolist() == found.held_out.chunk(0, 9)[1].tokens.tolist()
    for name in ("share", "all", "all on two", "all again"):
        rows = learned(runs[name])
        assert not held & {row for step in rows.values() for row in step}, name
        assert rows == {step: expected[step] for step in range(name == "all again", STEPS)}, name


def test_the_rows_that_are_held_out_are_counted_once(runs):
    count = None
    for name in ("share", "all on two", "all again"):
        (entry, *others) = [json.loads(line) for line in (runs[name] / "ledger.jsonl").read_text().splitlines()]
        assert entry["where"].endswith("train.jsonl") and " of 60 rows are held out, by eval.share" in entry["what"]
        total = entry["rows"] + sum(other["rows"] for other in others)
        count = count or total
        notes = records(runs[name], "note")
        assert [note["text"] for note in notes].count(f"rows held out of training by eval.share: {total}") == 1
        assert total == count and notes[-1]["ledger"] == {"held_out": total} == records(runs[name])[-1]["dropped"]
    assert "dropped" not in records(runs["both"])[-1]


def test_another_share_or_other_rows_of_it_are_refused_on_resume(runs, settings):
    folder = runs["share"]
    same, more = (data_of(settings("share", share=share)).facts() for share in (SHARE, 0.3))
    refuse_changes(folder, same, folder / "checkpoints")
    with pytest.raises(ConfigError, match=r"eval.share was 0.15, is 0.3; fingerprints.share was '\w+...', is"):
        refuse_changes(folder, more, folder / "checkpoints")
    same["learned"]["fingerprints"]["share"] = more["learned"]["fingerprints"]["share"]
    with pytest.raises(ConfigError, match=r"from here on: fingerprints.share was"):
        refuse_changes(folder, same, folder / "checkpoints")
    given = data_of(settings("x", "math", share=SHARE, patience=1)).facts()["learned"]["fingerprints"]
    assert len(given["held_out"]) == 1 and len(given["sources"]) == 2
    assert "held_out" not in data_of(settings("x", "math")).facts()["learned"]["fingerprints"]


def stops_after(values, patience):
    """The evaluation after which a run stops, and the one with the lowest loss; the first is before any step."""
    best, waited = 0, 0
    for step in range(1, len(values)):
        best, waited = (step, 0) if not best or values[step] < values[best] else (best, waited + 1)
        if waited == patience:
            break
    return step, best


def test_early_stopping_and_the_best_checkpoint_follow_the_source_that_decides(runs):
    """Both runs learn the same; one of them goes by noise, which only gets worse, and the other by all."""
    by_noise = stops_after(losses_of(runs["mean"], "noise"), 2)
    by_all = stops_after([record["loss"] for record in records(runs["mean"], "eval")], 2)
    assert by_noise[0] < by_all[0] == max(losses(runs["mean"]))
    assert by_noise[1] not in (by_all[1], by_noise[0]), "else this test shows nothing"
    assert max(losses(runs["decided"])) == by_noise[0]
    assert records(runs["decided"], "note")[-1]["text"] == "stopped early"
    manifest = Manifest.read(newest(runs["decided"]))
    assert (manifest.held_out, manifest.state["best"]) == (
        losses_of(runs["decided"], "noise")[-1], min(losses_of(runs["decided"], "noise")[1:])
    )  # fmt: skip
    assert whole_steps(runs["decided again"] / "checkpoints") == sorted(by_noise)


def test_a_run_that_goes_on_decides_as_one_that_never_stopped(runs):
    whole, resumed = (Manifest.read(newest(runs[name])) for name in ("decided", "decided again"))
    starts = [record["step"] for record in records(runs["decided again"], "note") if record["text"] == "start"]
    assert starts == [0, whole.step - 1] and resumed.step == whole.step
    assert Manifest.read(newest(runs["decided"]).with_name(f"step_{whole.step - 1:08d}")).state["waited"] == 1
    assert resumed.state == {"best": pytest.approx(whole.state["best"], rel=1e-4), "waited": whole.state["waited"]}
    assert losses_of(runs["decided again"], "noise") == pytest.approx(losses_of(runs["decided"], "noise"), rel=1e-4)
