"""Curation: the nearest of each concept, evenly, once each, whatever the batches are, in bounded memory."""

import json

import pytest
import torch

from poise.commands.curate import main
from poise.processing import Scenes, write_task_records
from poise.training.curation.concept_candidates import ConceptCandidates, coverage, coverage_summary, gini
from poise.training.curation.record_stream import RecordStream


def candidates_of(similarity, batch_size, capacity=4, **options):
    found = ConceptCandidates(["a", "b"], capacity, **options)
    records = [{"id": str(row)} for row in range(len(similarity))]
    for start in range(0, len(records), batch_size):
        stop = start + batch_size
        found.add(records[start:stop], similarity[start:stop])
    return found


def test_every_concept_gets_its_nearest_and_no_record_twice():
    similarity = torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.2, 0.6], [0.1, 0.5], [0.3, 0.2]])
    kept = candidates_of(similarity, 5).balanced(2)
    # Record 0 is nearest to both; concept a takes it, b goes on to its next.
    assert [(item.row, item.concept) for item in kept] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert [item.record["id"] for item in kept] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batches_change_nothing_and_memory_is_bounded(batch_size):
    similarity = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with many ties
    found = candidates_of(similarity, batch_size)
    assert [(k.row, k.concept) for k in found.balanced(3)] == [
        (k.row, k.concept) for k in candidates_of(similarity, 100).balanced(3)
    ]
    assert len(found.records) <= 2 * 4 and found.seen == 100
    one, other = similarity.T
    ties = float((one == other).sum())
    assert ties > 5
    assert found.nearest.tolist() == [float((one > other).sum()) + ties / 2, float((other > one).sum()) + ties / 2]


def test_rounding_errors_break_no_tie():
    """Equal similarities that another processor computes a little otherwise: the same records, the same shares."""
    similarity = torch.rand(60, 2, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    noise = 2e-6 * (torch.rand(60, 2, generator=torch.Generator().manual_seed(2)) - 0.5)
    plain, noisy = candidates_of(similarity, 60), candidates_of(similarity + noise, 60)
    assert noisy.nearest.tolist() == plain.nearest.tolist()
    assert [(k.row, k.concept) for k in noisy.balanced(3)] == [(k.row, k.concept) for k in plain.balanced(3)]


def test_coverage_tells_what_is_missing():
    similarity = torch.tensor([[0.9, 0.1], [0.8, 0.0], [0.7, 0.4]])
    found = candidates_of(similarity, 3, min_similarity=0.3)
    kept = found.balanced(2)
    rows = coverage(found, kept, 2)
    assert [(row["concept"], row["kept"], row["missing"], row["nearest"]) for row in rows] == [
        ("a", 2, 0, 3), ("b", 1, 1, 0),
    ]  # fmt: skip
    assert rows[1]["lowest"] == pytest.approx(0.4)
    summary = coverage_summary(rows, 2, found.seen)
    assert (summary["pool"], summary["kept"], summary["full"], summary["empty"]) == (3, 3, 1, 0)


def test_gini_by_hand():
    assert gini([5, 5, 5]) == pytest.approx(0.0) and gini([0, 0, 9]) == pytest.approx(2 / 3) and gini([0, 0]) == 0.0


def test_names_against_captions_find_what_captions_name(tmp_path, capsys):
    """Scenes follow the prior, so blue stars are rare in them; curated they are as many as yellow ones."""
    names = "yellow star,blue star,red square,white square"
    assert main(
        ["--data", "scenes:train,size=1500", "--concepts", names, "--text", "tiny:tag_encoder", "--template", "a {}",
         "--keep", "4", "--output", str(tmp_path)]
    ) == 0  # fmt: skip
    kept = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    concepts = [record["metadata"]["concept"] for record in kept]
    assert {name: concepts.count(name) for name in names.split(",")} == dict.fromkeys(names.split(","), 4)
    present = [
        record["metadata"]["concept"] in {f"{o['color']} {o['shape']}" for o in record["metadata"]["objects"]}
        for record in kept
    ]
    assert sum(present) >= 12  # of 16; guessing would find one in 25
    content = json.loads((tmp_path / "coverage.json").read_text())
    assert content["summary"]["gini_kept"] == 0.0 < content["summary"]["gini_pool"]
    assert "kept 16 of 1,500 records" in capsys.readouterr().out
    assert all((tmp_path / record["image"]).is_file() for record in kept)


def test_prototypes_against_images_of_a_file(tmp_path):
    pool = Scenes("train", size=60, tasks=["caption"], prior_strength=0.0)
    write_task_records(pool.__getitems__(range(60)), tmp_path / "pool.jsonl")
    few = Scenes("test", size=4, tasks=["caption"]).__getitems__(range(4))
    for number, record in enumerate(few):
        folder = tmp_path / "prototypes" / f"kind_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        record["image"].save(folder / f"{number}.png")
    words = ["--prototypes", str(tmp_path / "prototypes"), "--vision", "tiny:vision", "--keep", "5"]
    data, output = str(tmp_path / "pool.jsonl"), str(tmp_path / "curated")
    assert main(["--data", data, *words, "--batch-size", "16", "--output", output]) == 0
    kept = [json.loads(line) for line in (tmp_path / "curated" / "train.jsonl").read_text().splitlines()]
    assert sorted(record["metadata"]["concept"] for record in kept) == ["kind 0"] * 5 + ["kind 1"] * 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere.jsonl", "--concepts", "a,b", "--text", "tiny:tag_encoder"], "nowhere.jsonl"),
        (["--data", "scenes:train", "--concepts", "nowhere.txt", "--text", "tiny:tag_encoder"], "nowhere.txt"),
        (["--data", "scenes:train", "--prototypes", "nowhere", "--text", "tiny:tag_encoder"], "--vision"),
        (["--data", "scenes:train", "--concepts", "a,b", "--text", "tiny:tag_encoder", "--keep", "0"], "--keep 0"),
        (["--data", "scenes:train", "--concepts", "a,b", "--text", "x", "--capacity", "1"], "--capacity 1"),
        (["--data", "scenes:train", "--concepts", "a,b", "--text", "x", "--template", "a"], "--template"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises((ValueError, OSError)) as caught:
        main(words)
    assert message in str(caught.value)


def test_a_bad_line_of_the_pool_is_named(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"image": null, "task": "caption", "captions": ["a"]}\n{"task": "caption"}\n')
    with pytest.raises(ValueError, match="pool.jsonl line 2"):
        list(RecordStream(str(tmp_path / "pool.jsonl"), 2))
