"""Mixtures and streams: proportions, determinism, another order in every pass, and a position that can be resumed."""

import itertools
import json
from collections import Counter

import pytest
from torch.utils.data import DataLoader

from poise.processing.records.endless_records import EndlessRecords, StreamedRows, shuffled
from poise.processing.records.record_data import RecordMixture
from poise.processing.records.record_sources import RecordSource, stream_records
from poise.processing.scenes.scenes import Scenes
from poise.training.sft.recipe import load_recipe
from poise.training.sft.records import load_records


def part(name, size):
    return [{"id": f"{name}{number}", "image": None} for number in range(size)]


def ids(records):
    return [record["id"] for record in records]


def test_a_mixture_has_its_proportions_in_every_prefix():
    mixture = RecordMixture([part("a", 30), part("b", 10)], [1, 3], seed=5)
    assert len(mixture) == 40
    for length in range(1, 41):
        seen = Counter(identity[0] for identity in ids(mixture)[:length])
        assert abs(seen["b"] - 0.75 * length) <= 1
    # Thirty places for ten records: three whole passes, each in an order of its own.
    passes = [[r["id"] for r in mixture if r["id"][0] == "b" and r["pass"] == turn] for turn in range(3)]
    assert [sorted(turn) for turn in passes] == [sorted(ids(part("b", 10)))] * 3 and passes[0] != passes[1]


def test_a_part_that_is_not_seen_whole_goes_on_in_the_next_epoch():
    mixture = RecordMixture([part("a", 30), part("b", 10)], [1, 3], seed=5)
    seen = []
    for epoch in range(3):
        mixture.set_epoch(epoch)
        seen += [identity for identity in ids(mixture) if identity[0] == "a"]
    assert sorted(seen) == sorted(ids(part("a", 30)))


def test_a_mixture_follows_its_seed_alone():
    def drawn(seed):
        return ids(RecordMixture([part("a", 20), part("b", 20)], [2, 1], seed=seed))

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(RecordMixture([part("a", 20), part("b", 5)])) == 25
    whole = Counter(ids(RecordMixture([part("a", 20), part("b", 5)])))
    assert set(whole.values()) == {1}  # without weights every record is seen once
    with pytest.raises(ValueError, match="needs at least one record"):
        RecordMixture([part("a", 2), []])
    with pytest.raises(ValueError, match="must be one positive number"):
        RecordMixture([part("a", 2)], [0])


def rows(name, size):
    return StreamedRows(name, lambda: iter(range(size)), lambda raw: {"id": f"{name}{raw}", "image": None})


def taken(stream, count):
    return [None if record is None else (record["id"], record["pass"]) for record in itertools.islice(stream, count)]


def test_a_stream_shuffles_every_pass_and_loses_nothing():
    stream = EndlessRecords([rows("a", 50)], seed=1, shuffle_buffer=8)
    records = taken(stream, 100)
    first, second = records[:50], records[50:]
    assert sorted(first) == sorted((f"a{n}", 0) for n in range(50)) and {turn for _, turn in second} == {1}
    assert [name for name, _ in first] != [name for name, _ in second] != [f"a{n}" for n in range(50)]
    assert list(shuffled(range(5), 1, "s")) == [0, 1, 2, 3, 4]


def test_weights_of_a_stream():
    stream = EndlessRecords([rows("a", 7), rows("b", 1000)], [3, 1], seed=2)
    seen = Counter(name[0] for name, _ in taken(stream, 4000))
    assert 0.72 < seen["a"] / 4000 < 0.78  # four standard deviations


def test_a_resumed_stream_goes_on_where_it_stopped():
    def stream():
        return EndlessRecords([rows("a", 13), rows("b", 40)], [1, 2], seed=3, shuffle_buffer=5)

    whole = taken(stream(), 60)
    for position in (1, 12, 59):
        resumed = stream()
        resumed.passed_over = position
        assert taken(resumed, 60) == [None] * position + whole[position:]


def test_passing_over_opens_nothing():
    def refuse(raw):
        raise AssertionError("a record was made of a place that is passed over")

    stream = EndlessRecords([StreamedRows("a", lambda: iter(range(9)), refuse)])
    stream.passed_over = 20
    assert taken(stream, 20) == [None] * 20


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_take_turns_by_whole_batches(workers):
    stream = EndlessRecords([rows("a", 30)], seed=4)
    stream.group = 4
    loader = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=ids)
    alone = [name for name, _ in taken(EndlessRecords([rows("a", 30)], seed=4), 24)]
    assert list(itertools.chain(*itertools.islice(loader, 6))) == alone


def test_a_stream_of_json_lines_checks_its_first_records_at_once(tmp_path):
    good = {"task": "vqa", "question": "what ?", "answers": ["dog"], "image": None}
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (good, good, {**good, "answers": []})))
    with pytest.raises(ValueError, match="train.jsonl line 3, field 'answers'"):
        stream_records(RecordSource(str(path)))
    path.write_text("")
    with pytest.raises(ValueError, match="holds no record of split 'train'"):
        stream_records(RecordSource(str(path)))


def test_a_recipe_mixes_sources(tmp_path):
    lines = [{"task": "vqa", "question": "what ?", "answers": ["dog"], "image": None, "id": f"l{n}"} for n in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    entries = [{"name": str(tmp_path / "train.jsonl"), "weight": 1}, {"name": "scenes", "weight": 3}]
    overrides = {"data.train": entries, "data.scenes": {"size": 12, "tasks": ["vqa"]}, "align_pictures": 0}
    train, evaluation = load_records(load_recipe("demo", overrides))
    assert Counter(name[0] for name in ids(train)) == {"l": 4, "s": 12} and len(evaluation) == 200
    stream, _ = load_records(load_recipe("demo", {**overrides, "data.streaming": True}))
    drawn = Counter(name[0] for name, _ in taken(stream, 400))
    assert 0.66 < drawn["s"] / 400 < 0.84
    assert isinstance(train.parts[1], Scenes)
