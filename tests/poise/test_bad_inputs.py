# ruff: noqa: E501 (a table)
"""One table of bad inputs, each through the real command: one line that names value and remedy, and nothing written.

A row is a command line and what its line says, in this order, parts divided by " .. ". The files that the rows name are
made once, in a folder that every command runs in and must leave as it was. No row may come so far as to read weights,
but those of damaged models.
"""

import json
import os
import pickle
import random
import shlex
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from poise.command_line import COMMANDS, main

RLO, NUL = "\u202e", "\0"
RECORD = {"id": "a", "image": "dog.png", "task": "vqa", "question": "what ?", "answers": ["dog"]}
BOXED = {"id": "a", "image": "dog.png", "task": "grounding", "question": "the dog", "bbox": [1, 2, 3, 4]}

# ---- images ----------------------------------------------------------------------------------------------------------

IMAGES = {
    "https://example.org/dog.png": "is an address: download the image and name the file",
    "s3://bucket/dog.png": "is an address",
    "folder": "is a folder: name a file in it",
    "pipe": "is no ordinary file (a pipe, a socket or a device): copy the image",
    "/dev/null": "is no ordinary file",
    "nowhere.png": "there is no such file; check the path",
    "photo.heic": "is a HEIC photo .. convert it",
    "drawing.svg": "is an SVG drawing, which has no pixels: render it to PNG",
    "table.csv": "is not an image in a known format but text; give JPEG",
    "latin.txt": "is not an image in a known format but text; give JPEG",
    "huge.png": "is 13000×13000 = 169 megapixels, more than max_pixels=50 megapixels: shrink it, or raise max_pixels",
    "cut.png": "is truncated or damaged .. copy or download it again",
    "cut.jpg": "is truncated or damaged .. copy or download it again",
    "empty.png": "is an empty file; copy or download it again",
    "pointer.png": "is a Git LFS pointer .. run git lfs pull",
    "page.png": "is an HTML page .. download the image again",
    "page.pdf": "is a PDF: render the page to PNG",
}
IMAGE_ROWS = [
    *((f"ask model {name} what", f"image='{name}' .. {said}") for name, said in IMAGES.items()),
    *((f"look model {name} what --output out.html", f"image='{name}' .. {said}") for name, said in IMAGES.items()),
    *((f"fit-router model --data scenes:test,size=2 --image {name} --output out", f"image='{name}' .. {said}")
      for name, said in IMAGES.items()),
]  # fmt: skip

# ---- tags ------------------------------------------------------------------------------------------------------------

TAGS = {
    "dog:high": "the score of 'dog:high' is no number; write name:score",
    "dog:2": "the score must lie in [0, 1]; turn logits into probabilities",
    "dog:-1": "the score must lie in [0, 1]",
    "dog:nan": "the score must lie in [0, 1]",
    ":0.5": "the name is empty; leave the tag out",
    f"dog{RLO}gpj:0.5": "the invisible character '\\u202e'; remove it",
    f"do{NUL}g:0.5": "the invisible character '\\x00'; remove it",
    "dog\ud800:0.5": "the invisible character '\\ud800'; remove it",
}
TAG_ROWS = [
    *((f"ask model dog.png what --tags '{tags}'", f"tags .. {said}") for tags, said in TAGS.items()),
    *((f"look model dog.png what --output out.html --tags '{tags}'", said) for tags, said in TAGS.items()),
]

# ---- task records: what is written over a good one, the field that is named, what is said ----------------------------

RECORDS = [
    ({"tag": [["dog", 0.5]]}, "tag", "did you mean 'tags'"),
    ({"Tags": [["dog", 0.5]]}, "Tags", "did you mean 'tags'"),
    ({"meta_data": {}}, "meta_data", "did you mean 'metadata'"),
    ({"caption": ["x"]}, "caption", "did you mean 'captions'"),
    ({"id": {"number": 1}}, "id", "is a dict; give a text or a number"),
    ({"id": ["a"]}, "id", "is a list; give a text or a number"),
    ({"id": "a\u202eb"}, "id", "'a\\u202eb' holds the invisible character '\\u202e'; remove it"),
    ({"id": "a\nb"}, "id", "holds the invisible character '\\n'; remove it"),
    ({"image": []}, "image", "an empty list; write null"),
    ({"image": ["dog.png", 3]}, "image[1]", "3 is a int; give a file, a list of files"),
    ({"image": {"url": "x"}}, "image", "is a dict; give a file"),
    ({"image": True}, "image", "is a bool"),
    ({"image": "../dog.png"}, "image", "'../dog.png' lies outside of '.': set image_folder"),
    *(
        ({"image": name}, "image", said)
        for name, said in IMAGES.items()
        if name not in ("s3://bucket/dog.png", "/dev/null")
    ),
    ({"task": "chat"}, "task", "'chat' is not known: write caption, vqa, grounding"),
    ({"task": ["vqa"]}, "task", "is not known"),
    ({"question": "x" * 100_001}, "question", "100,001 characters, more than 100,000; cut the text"),
    ({"answers": ["x" * 200_000]}, "answers[0]", "cut the text"),
    ({"question": ["what ?"]}, "question", "is a list; give a text"),
    ({"question": "what is <image> ?"}, "question", "holds <image> .. leave it out of the text"),
    ({"answers": ["a <image>"]}, "answers[0]", "leave it out of the text"),
    ({"answers": {"dog": 1}}, "answers", "is a dict; give a list of texts"),
    ({"answers": [["dog"]]}, "answers[0]", "is a list; give a text"),
    ({"answers": [None]}, "answers[0]", "is a NoneType; give a text"),
    ({"answers": None}, "answers", "missing; give a list of texts"),
    ({"tags": {"dog": 0.5}}, "tags", "is not a list of (name, score) pairs"),
    ({"tags": [["dog", "high"]]}, "tags", "the score must be a number"),
    ({"tags": [["dog", True]]}, "tags", "the score must be a number"),
    ({"tags": [["dog", -0.1]]}, "tags", "must lie in [0, 1]"),
    ({"tags": [["", 0.5]]}, "tags", "the name is empty"),
    ({"tags": [[3, 0.5]]}, "tags", "the name must be a string"),
    ({"tags": [[f"dog{NUL}", 0.5]]}, "tags", "the invisible character '\\x00'"),
    ({"tags": [[f"dog{RLO}gpj", 0.5]]}, "tags", "the invisible character '\\u202e'"),
    ({"metadata": "x"}, "metadata", "must be an object"),
]
BOXES = [
    ([1, 2, 3], "[1, 2, 3] has 3 numbers"),
    ([1, 2, 3, 4, 5], "has 5 numbers"),
    ("1 2 3 4", "'1 2 3 4' is a str"),
    ([1, 2, "3", 4], "give [x, y, w, h]"),
    ([1, 2, float("nan"), 4], "not finite"),
    ([1, 2, 300, 4], "reaches outside"),
    ([-5, 2, 3, 4], "outside"),
    ([1, 2, 0, 4], "bbox"),
]
LINES = [
    ('{"id": "a", "id": "b", "image": null}', "id", "stands twice in one object; keep one"),
    ("[" * 100_000, "(all)", "nested too deep; write it flat"),
    ('{"id": "a", "image": null, "task": "vqa", "question": "\\ud800", "answers": ["x"]}', "(all)", "half of a surrogate"),
    ("{'id': 'a'}", "(all)", "not JSON"),
    ('{"id": "a"', "(all)", "not JSON"),
    ("null", "(all)", "is not an object"),
    ("3", "(all)", "is not an object"),
    ('"text"', "(all)", "is not an object"),
    (json.dumps({**BOXED, "id": "b", "image": None}), "image", "null, but a box lies in an image; name the file"),
    (json.dumps(RECORD), "id", "'a' is the id of data.jsonl line 1, too; give each record its own"),
    (json.dumps({"image": None}), "task", "missing; give one of caption, vqa, grounding"),
    (json.dumps({"task": "vqa"}), "image", "missing; give a file"),
]  # fmt: skip
SHOW = "data show {} --output out.png"
RECORD_ROWS = [
    *((SHOW.format("data.jsonl"), f"data.jsonl line 2, field '{field}': .. {said}",
       {"data.jsonl": "\n".join(map(json.dumps, ({**good, "id": "first"}, {**good, **change})))})
      for good, change, field, said in [*((RECORD, *row) for row in RECORDS),
                                        *((BOXED, {"bbox": box}, "bbox", said) for box, said in BOXES)]),
    *((SHOW.format("data.jsonl"), f"data.jsonl line 3, field '{field}': .. {said}",
       {"data.jsonl": f"{json.dumps(RECORD)}\n\n{line}\n"}) for line, field, said in LINES),
]  # fmt: skip

# ---- sources of records ----------------------------------------------------------------------------------------------

SOURCES = {
    "scenes:nosplit": "split='nosplit' is no split of Scenes: known: train",
    "scenes:test,size": "'size' is no setting; write name=value",
    "scenes:test,size=many": "data='scenes:test,size=many'",
    "scenes:test,sizes=3": "'sizes' .. see the arguments of Scenes",
    "scenes:test,size=-1": "size=-1 leaves no scene: use size >= 1",
    "nowhere.jsonl": "data='nowhere.jsonl': there is no such file of task records; check the path",
    "nobody/nothing": "data='nobody/nothing' is no file or folder here .. check the name",
    "nobody/nothing:": "data='nobody/nothing:' is neither a name nor NAME:SPLIT",
    "https://example.org/x.jsonl": "data='https://example.org/x.jsonl' is an address: download it and name the file",
    "{name: x": "data='{name: x' is no mapping .. write {name: user/photos",
    "{name: dog.png, colums: 3}": "source field 'colums' is not known .. Did you mean 'columns'?",
    "{split: test}": "source {'split': 'test'} has no name: give a file",
    "folder": "data='folder' is no file or folder here .. No (supported) data files found",
    "empty.jsonl": "empty.jsonl, field '(all)': the file holds no record; write one JSON object a line",
    "latin.jsonl": "latin.jsonl, field '(all)': not text in UTF-8 .. save it as JSON lines in UTF-8",
    "dog.png": "dog.png, field '(all)': not text in UTF-8",
    "unanswered.jsonl": "unanswered.jsonl line 1, field 'answers': missing; give a list of texts",
    "{name: records.jsonl, weight: -1}": "weight=-1 of 'records.jsonl' must be a number above 0",
    "{name: records.jsonl, format: llava}": "format='llava' is not known: choose one of",
    "{name: records.jsonl, task: chat}": "task='chat' of 'records.jsonl' is not known: write caption",
    "{name: records.jsonl, columns: {question: query}}": "'records.jsonl' has no column 'query' for 'question': it has",
    "{name: records.jsonl, max_pixels: 10}": "records.jsonl line 1, field 'image': .. more than max_pixels",
    "{name: records.jsonl, strict: perhaps}": "strict='perhaps' of 'records.jsonl' must be true or false",
}
SOURCE_ROWS = [
    *((f"evaluate model --data '{source}' --output out", said) for source, said in SOURCES.items()),
    *((f"{command} model --data '{source}' --output out", SOURCES[source])
      for command in ("robustness", "diagnose", "interpret", "fit-router")
      for source in ("scenes:nosplit", "nowhere.jsonl", "folder", "unanswered.jsonl", "empty.jsonl")),
    *((f"{command} folder --data scenes:test,size=2 --output out", "is a folder without config.json; name the folder")
      for command in ("evaluate", "robustness", "diagnose", "interpret", "fit-router")),
]  # fmt: skip

# ---- LLaVA, chats, tables, published files ---------------------------------------------------------------------------

TALK = {"id": "7", "image": "dog.png", "conversations": [
    {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]}  # fmt: skip
ASKED, ANSWERED = TALK["conversations"]
TALKS = [  # what is written over the second row, field, what is said
    (3, "(all)", "3 is not an object with fields; mend or remove it"),
    ({**TALK, "conversations": [3]}, "conversations[0]", "3 is no turn with a role and a text; mend or leave"),
    ({**TALK, "conversations": "x"}, "conversations", "'x' is no list of turns"),
    ({**TALK, "conversations": [ANSWERED, ASKED]}, "conversations", "do not take turns; mend or leave the row out"),
    ({**TALK, "conversations": [{**ASKED, "from": "dog"}, ANSWERED]}, "conversations", "do not take turns"),
    ({**TALK, "conversations": [ASKED, {"from": "gpt", "value": 3}]}, "conversations[1]", "3 is no text"),
    ({**TALK, "conversations": [ASKED, {"from": "gpt", "value": "x" * 200_000}]}, "answers[0]", "cut the text"),
    ({**TALK, "image": 3}, "image", "3 is a int; give a file"),
    ({**TALK, "image": "cat.png"}, "image", "holds no 'cat.png' .. name the folder with all images"),
    ({**TALK, "image": "../../etc/hosts"}, "image", "holds no '../../etc/hosts'"),
    ({**TALK, "image": "notes.txt"}, "image", "not an image in a known format but text"),
    ({"id": "8"}, "messages", "missing, and the document not as `conversations` is published"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0]", "is no text and no list of parts"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0]", "is no text and no list of parts"),
]
EVALUATE = "evaluate model --data {} --output out"
TABLES = [
    (
        "t.csv",
        "image,task,question,answers\ndog.png,vqa,q,a\ncat.png,vqa,q,a\n",
        "t.csv line 3, field 'image': .. no such",
    ),
    ("t.csv", "image,task\ndog.png,vqa,x,y\n", "t.csv line 2, field '(all)': 2 cells too many; put texts"),
    ("t.csv", "image,task,question,answers\ndog.png,chat,q,a\n", "t.csv line 2, field 'task': 'chat' is not known"),
    ("t.csv", "image,task,question,tags\ndog.png,vqa,q,[1\n", "t.csv line 2, column 'tags' .. not JSON"),
    ("t.csv", "image,task\n", "t.csv, field '(all)': the file holds no record"),
    ("t.csv", "a,b\n1,2\n", "t.csv line 2, field 'image': missing; give a file"),
    ("t.csv", b"image,task\n\xe9,vqa\n", "t.csv, field '(all)': not text in UTF-8 .. save the table in UTF-8"),
    ("t.tsv", "image\ttask\tquestion\tanswers\ndog.png\tvqa\t\ta\n", "t.tsv line 2, field 'question': missing"),
    ("t.json", "[]", "t.json, field '(all)': the file holds no record"),
    ("t.json", "[1, 2", "t.json, field '(all)': not JSON"),
    ("t.json", b'[{"id": "\xe9"}]', "t.json, field '(all)': not text in UTF-8"),
    ("t.json", json.dumps([RECORD, {**RECORD, "id": 2, "task": "chat"}]), "t.json entry 2, field 'task'"),
    ("t.parquet", b"PAR1", "data='t.parquet' is no Parquet file .. write it again"),
    ("t.jsonl", "\ufeff{'a': 1}\n", "t.jsonl line 1, field '(all)': not JSON"),
]
POPE = {"question_id": 1, "image": "dog.png", "text": "is there a dog ?", "label": "yes"}
OKVQA = {"question_id": 1, "image": "dog.png", "question": "what ?"}
REFERENCE = {"question_id": 1, "answer": ["the dog"], "bbox": [1, 2, 3, 4], "file_name": "dog.png"}
PUBLISHED = [  # format, what the file holds, what is said
    ("pope", [POPE, {"question_id": 2}], "q.json entry 2, field 'image': missing"),
    ("pope", [POPE, 3], "q.json entry 2, field '(all)': 3 is not an object"),
    ("pope", f"{json.dumps(POPE)}\n\n{json.dumps({'question_id': 2})}\n", "q.json line 3, field 'image': missing"),
    ("pope", f"{json.dumps(POPE)}\n\n{{\n", "q.json line 3, field '(all)': not JSON"),
    ("pope", [POPE, {**POPE, "image": "cat.png"}], "q.json entry 2, field 'image': .. holds no 'cat.png' .. --skip-missing"),
    ("pope", [{**POPE, "text": "is <image> ?"}], "q.json entry 1, field 'question': .. leave it out of the text"),
    ("pope", [{**POPE, "text": 3}], "q.json entry 1, field 'question': 3 is a int; give a text"),
    ("pope", "3", "not as `pope` is published; give the file as it was downloaded"),
    ("pope", "{", "q.json, field '(all)': not JSON"),
    ("pope", "[" * 100_000, "q.json, field '(all)': nested too deep"),
    ("pope", b'[{"a": "\xe9"}]', "q.json, field '(all)': not text in UTF-8"),
    ("aokvqa", [{**OKVQA, "direct_answers": "[1"}], "q.json entry 1, field '(all)': not as `aokvqa` is published"),
    ("aokvqa", [{**OKVQA, "choices": ["a"], "correct_choice_idx": 7}], "q.json entry 1, field '(all)': not as `aokvqa`"),
    ("aokvqa", [], "the document holds no record; check the split and the file"),
    ("okvqa", {"questions": []}, "okvqa needs two files"),
    ("okvqa", [{**OKVQA, "image": None, "image_id": "x", "answers": ["a"]}], "q.json entry 1, field '(all)'"),
    ("coco-captions", {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]},
     "q.json images[0], field 'file_name': missing"),
    ("coco-captions", {"images": [], "annotations": [{"image_id": 1, "caption": 3}]}, "q.json annotations[0], field"),
    ("coco-captions", {"a": 1}, "field 'images': missing"),
    ("textcaps", {"data": [{"image_name": "x"}]}, "q.json data[0], field 'image_id': missing"),
    ("refcoco", [{"ref_id": 1}], "references without boxes: give the instances.json beside them"),
    ("refcoco", [{**REFERENCE, "bbox": [1, 2, 300, 4]}], "q.json entry 1, field 'bbox': .. outside"),
    ("refcoco", [{**REFERENCE, "bbox": [1, "b", 3, 4]}], "q.json entry 1, field '(all)'"),
    ("refcoco", [{"question_id": 1, "answer": ["x"], "file_name": "dog.png"}], "q.json entry 1, field 'bbox': missing"),
    ("hallusionbench", [{"category": "VD"}], "q.json entry 1, field 'subcategory': missing"),
    ("mmstar", [{"index": 1}], "q.json entry 1, field 'image': missing"),
    ("conversations", [{**TALK, "conversations": [3]}], "q.json entry 1, field 'conversations[0]'"),
]  # fmt: skip
FORM_ROWS = [
    *((EVALUATE.format("t.jsonl"), f"t.jsonl line 2, field '{field}': .. {said}",
       {"t.jsonl": f"{json.dumps(TALK)}\n{json.dumps(row)}\n"}) for row, field, said in TALKS),
    *((EVALUATE.format("t.json"), f"t.json entry 2, field '{field}': .. {said}", {"t.json": json.dumps([TALK, row])})
      for row, field, said in TALKS[:4]),
    *((EVALUATE.format(name), said, {name: content}) for name, content, said in TABLES),
    *((f"data convert {form} q.json --images . --output out.jsonl", said,
       {"q.json": content if isinstance(content, str | bytes) else json.dumps(content)})
      for form, content, said in PUBLISHED),
    ("data convert nothing records.jsonl --output out.jsonl", "format='nothing' is not known: choose one of"),
    ("data convert pope nowhere.json --output out.jsonl", "source='nowhere.json': there is no such file; check the path"),
    ("data convert pope q.json --images nowhere --output out.jsonl", "images='nowhere' is no folder: name the folder",
     {"q.json": json.dumps([POPE])}),
    ("data convert pope q.json --output out.jsonl", "images is not given .. name the folder of the images (--images)",
     {"q.json": json.dumps([POPE])}),
    ("data convert photos folder --output out", "folder='folder' has no sub-folder images; give the folder above"),
    ("data convert refcoco evil.p --output out.jsonl", "posix.system, which could run code: only plain data is read"),
    ("data convert refcoco cut.p --output out.jsonl", "source='cut.p' is no pickle of plain data"),
]  # fmt: skip

# ---- recipes, study plans, preference pairs --------------------------------------------------------------------------

SFT = "sft --config demo --output_dir out {}"
RECIPES = {
    "--per_device_train_batch_size 0": "per_device_train_batch_size=0 must be at least 1",
    "--per_device_train_batch_size two": "='two' must be a whole number",
    "--max_steps many": "training.max_steps='many' must be a whole number",
    "--seed x": "training.seed='x' must be a whole number",
    "--seed -1": "training.seed=-1 must be at least 0",
    "--seed 4294967296": "training.seed=4294967296 must be at most 4294967295",
    "--deepspeed nowhere.json": "training: these settings need the package deepspeed: pip install deepspeed",
    "--lora 3": "recipe key 'lora' is a section: write --lora.r VALUE, or another key of it",
    "--lora null": "learning_rates.adapters is given but lora is null",
    "--bf16 maybe": "training.bf16='maybe' must be true or false",
    "--dataloader_num_workers -1": "dataloader_num_workers=-1 must be at least 0",
    "--train_sampling_strategy by_length": "'by_length' is not known: did you mean 'group_by",
    "--report_to trakio": "report_to: 'trakio' is not known: did you mean 'trackio'?",
    "--report_to wandb": "report_to='wandb' needs wandb: pip install wandb",
    "--eval_strategy step": "training: step is not a valid IntervalStrategy",
    "--fp16 true": "training.fp16=true needs a GPU",
    "--data.evaluation null --eval_strategy steps --eval_steps 2": "has nothing to evaluate on: name data.evaluation",
    "--data.scenes '{sizes: 3}'": "data.scenes: 'sizes' is not known: did you mean 'size'?",
    "--data.train '[{name: scenes, scenes: {sizes: 3}}]'": "data.train: scenes: 'sizes'",
    "--router_type 3": "model.router_type=3 must be a name",
    "--router_type gat": "router_type='gat' is not known .. Did you mean 'gate'?",
    "--stream_dropout 2": "stream_dropout=2.0 must lie in [0, 1)",
    "--vision_feature_layer last": "model.vision_feature_layer='last' must be a whole number",
    "--model.vision nobody/nothing": "model.vision='nobody/nothing' cannot be read",
    "--model.text tiny:vision": "model.text='tiny:vision' is a 'siglip_vision_model'",
    "--model.tag_encoder tiny:vision": "model.tag_encoder='tiny:vision' is a 'siglip_vision_m",
    "--lora.target_modules '[q_prj]'": "fits no layer of the language model: name some of down_proj",
    "--lora.target_modules all-linear": "would also take the projector's",
    "--data.packing 512 --model.text tiny:seq2seq_lm": "leave packing out",
    "--processor.max_tags -1": "processor.max_tags=-1 must be a whole number of at least 1",
    "--processor.chat_template '{% x'": "put quotes around it",
    "--learning_rates.adapter 1": "section 'learning_rates': 'adapter' is not known: did you mean 'adapters'?",
    "--model.visoin x": "section 'model': 'visoin' is not known: did you mean 'vision'?",
    "--lora.r 0": "lora.r=0 must be a whole number of at least 1 (lora: null for no LoRA)",
    "--lora.r many": "lora.r='many' must be a whole number of at least 1",
    "--max_steps": "option --max_steps needs a value: write --max_steps VALUE",
    "demo": "argument 'demo' was not expected: options are written --key value",
    "--output_dir dog.png": "'dog.png' is a file: name a folder",
    "--output_dir dog.png/run": "dog.png/run' cannot be made",
    "--data.feature_cache dog.png": "is a file: name a folder",
    "--data nowhere.jsonl --data.evaluation null": "data='nowhere.jsonl': there is no such file",
    "--data dog.png --data.evaluation null": "dog.png, field '(all)': not text in UTF-8",
}
STAGES = {
    "align": "align --config align --output_dir out {}",
    "preference": "preference --config preference_scenes --model model --output_dir out {}",
    "tag-encoder": "tag-encoder --config tag_encoder_scenes --output_dir out {}",
}
EVERY_STAGE = ("--max_steps many", "--per_device_train_batch_size two", "--fp16 true", "--report_to trakio",
               "--eval_strategy step", "--data.scenes '{sizes: 3}'")  # fmt: skip
RECIPE_FILES = {
    "- 1\n": "recipe recipe.yaml: expected training, model, .. found list",
    "3": "recipe recipe.yaml: expected training, model, .. found int",
    "a: [": "recipe recipe.yaml: not valid YAML",
    "model:\n  dtype: auto\n  dtype: float32\n": "recipe recipe.yaml: not valid YAML: 'dtype' stands twice; keep one",
    b"a: \xe9": "recipe recipe.yaml: not valid YAML",
    "[" * 3000: "recipe recipe.yaml: not valid YAML",
    "x: !!python/object/apply:os.system [echo]\n": "recipe recipe.yaml: not valid YAML",
    "modell: {}\n": "section 'modell' is not known: did you mean 'model'?",
}
PLAN = """recipe: demo
steps: 1
batch_size: 2
samples: 2
train_scenes: 8
scenes: {tasks: [vqa]}
seeds: [0]
grid: {router: [none], training: [clean]}
conditions: [{name: clean, split: test}]
"""
PLANS = [  # words of the plan, words in their place, what is said
    ("steps: 1", "steps: many", "steps='many' must be a whole number of at least 1"),
    ("steps: 1", "stepps: 1", "'stepps' is no field of a study: known are also, batch_size"),
    ("steps: 1", "", "the field 'steps' is missing; see training/recipes/study.yaml"),
    ("recipe: demo", "recipe: nowhere", "recipe 'nowhere' is not known"),
    (
        "recipe: demo",
        "recipe: demo\noverrides: {router_typ: gate}",
        "'router_typ' is not known: did you mean 'router_type'?",
    ),
    ("recipe: demo", "recipe: demo\nheld_out: [blurr]", "held_out names 'blurr', which is no degradation among"),
    ("train_scenes: 8", "train_scenes: 1", "train_scenes=1 are fewer than one batch of 2"),
    ("scenes: {tasks: [vqa]}", "scenes: {sizes: 3}", "scenes: 'sizes' is not known: did you mean 'size'?"),
    ("scenes: {tasks: [vqa]}", "scenes: 3", "scenes=3 must be settings of scenes, such as {size: 2000}"),
    ("seeds: [0]", "seeds: []", "seeds and conditions need at least one entry each"),
    ("seeds: [0]", "seeds: 3", "seeds=3 must be a list"),
    ("seeds: [0]", "seeds: [x]", "seeds='x' must be a whole number"),
    ("router: [none]", "router: [gat]", "router='gat' is not known: choose among none, gate"),
    ("router: [none]", "router: none", "router='none' must be a list, such as [none]"),
    ("router: [none]", "routers: [none]", "'routers' is no axis of the grid: known are router"),
    ("training: [clean]", "training: [degraded]", "degraded_with.image is missing, but the grid trains on degraded"),
    ("grid: {router: [none], training: [clean]}", "grid: 3", "grid=3 must be a mapping"),
    ("[{name: clean, split: test}]", "[clean]", "conditions[0]='clean' must be a mapping"),
    ("[{name: clean, split: test}]", "{name: clean}", "must be a list"),
    ("{name: clean, split: test}", "{split: test}", "the condition {'split': 'test'} lacks 'name'"),
    ("{name: clean, split: test}", "{image: [blur]}", "the condition {'image': ['blur']} lacks 'severities'"),
    (
        "{name: clean, split: test}",
        "{image: [blurr], severities: [2]}",
        "degradation='blurr' is no image degradation: did you mean 'blur'?",
    ),
    ("{name: clean, split: test}", "{image: [blur], severities: [9]}", "severity=9 is not 1, 2, 3, 4 or 5"),
    (
        "{name: clean, split: test}",
        "{name: x, split: tset}",
        "split='tset' is no split of Scenes: did you mean 'test'?",
    ),
    (PLAN, "[1, 2]", "expected also, batch_size .. found list"),
    (PLAN, "a: [", "not valid YAML"),
]
PAIR = {"image": "dog.png", "question": "what ?", "chosen": "dog", "rejected": "cat"}
PAIRS = [
    ({"chosen": 3}, "chosen", "3; write the chosen answer as a text"),
    ({"chosen": " "}, "chosen", "write the chosen answer as a text"),
    ({"rejected": None}, "rejected", "None; write the rejected answer as a text"),
    ({"rejected": "dog "}, "rejected", "'dog ' is the chosen answer, too: nothing to prefer"),
    ({"image": "cat.png"}, "image", "no such file"),
    ({"image": 3}, "image", "3 is a int; give a file"),
    ({"task": "grounding"}, "task", "'grounding' has no preference pairs; ask for the box"),
    ({"question": ""}, "question", "empty; write the text"),
    ({"question": None}, "question", "missing; give a text"),
    ({"tags": [["dog", 2]]}, "tags", "must lie in [0, 1]"),
]
STREAM = SFT.format("--data data.jsonl --data.evaluation null --align_pictures 0 --data.streaming true")
STREAMED = [
    ({"image": "cut.jpg"}, "is truncated or damaged"),
    ({"image": "nowhere.png"}, "there is no such file; check the path"),
    ({"image": None, "task": "grounding", "bbox": [1, 1, 2, 2]}, "data.jsonl line 1, field 'image': null, but a box"),
    ({"question": "<image> what ?"}, "data.jsonl line 1, field 'question': .. leave it out of the text"),
    ({"tags": [["dog", 2]]}, "data.jsonl line 1, field 'tags': .. must lie in [0, 1]"),
]
TRAINING_ROWS = [
    *((SFT.format(words), said) for words, said in RECIPES.items()),
    *((stage.format(words), RECIPES[words]) for stage in STAGES.values() for words in EVERY_STAGE),
    (STAGES["align"].format("--model.vision nobody/nothing"), "model.vision='nobody/nothing' cannot be read"),
    (STAGES["tag-encoder"].format("--model.tag_encoder nobody/nothing"), "model.tag_encoder='nobody/nothing' cannot be"),
    (STAGES["tag-encoder"].format("--model.tag_encoder tiny:vision"), "has no tokenizer that can be read: give a BERT-like"),
    *((f"sft --config vlm_router --data records.jsonl --output_dir out --vlm {name}", said) for name, said in {
        "nobody/nothing": "model.vlm='nobody/nothing' cannot be read",
        "tiny:causal_lm": "is a 'llama' model, which answers no questions about images: give an image-text-to-text",
        "clip": "is a 'clip' model, which answers no questions about images: give an image-text-to-text",
        "model --tag_encoder tiny:vision": "has no tokenizer that can be read: give a BERT-like encoder",
        "model --tag_encoder nobody/nothing": "model.tag_encoder='nobody/nothing' cannot be read"}.items()),
    (STAGES["align"].format("--tagger.vocabulary nowhere.txt"), "tagger.vocabulary='nowhere.txt' is no file"),
    (STAGES["align"].format("--tagger.vocabulary latin.txt"), "latin.txt, field '(all)': not text in UTF-8"),
    (STAGES["align"].format("--data records.jsonl"), "drawn scenes, but data.train='records.jsonl' is not: name held-out"),
    *(("sft --config recipe.yaml --output_dir out", said, {"recipe.yaml": content})
      for content, said in RECIPE_FILES.items()),
    ("sft --config nowhere", "recipe 'nowhere' is not known"),
    *(("study --config plan.yaml --output out", said,
       {"plan.yaml": PLAN.replace(words, others)}) for words, others, said in PLANS),
    ("study --config nowhere", "recipe 'nowhere' is not known"),
    ("study --jobs 0 --output out", "--jobs=0 does nothing: use 1 or more"),
    ("study --steps 0 --output out", "steps=0 must be a whole number of at least 1"),
    ("study --output dog.png", "--output 'dog.png' is a file: name a folder"),
    ("study --report-only --output nowhere", "--report-only: nowhere holds 0 of .. run `poise study` first"),
    *((STAGES["preference"].format("--data pairs.jsonl"), f"pairs.jsonl line 2, field '{field}': .. {said}",
       {"pairs.jsonl": f"{json.dumps({**PAIR, 'id': 1})}\n{json.dumps({**PAIR, **change})}\n"})
      for change, field, said in PAIRS),
    (STAGES["preference"].format("--data pairs.jsonl"), "the file holds no pair; write one JSON object a line",
     {"pairs.jsonl": "\n"}),
    (STAGES["preference"].format("--data pairs.jsonl"), "pairs.jsonl line 1, field '(all)': 3 is not an object",
     {"pairs.jsonl": "3\n"}),
    ("preference --config preference_scenes --model nowhere", "nowhere"),
    *((STREAM, said, {"data.jsonl": json.dumps({**RECORD, **change})}) for change, said in STREAMED),
    ("sft --config demo --output_dir out --data.evaluation null --data records.jsonl --data.tagger tags.jsonl",
     "no tags were written down for record 'a'", {"tags.jsonl": json.dumps({"id": "another", "tags": []})}),
    ("demo --steps 0", "--steps is 0; it must be at least 1"),
    ("demo --routers gats", "router_type='gats' is not known .. Did you mean 'gate'?"),
    ("demo --output dog.png", "--output 'dog.png' is a file: name a folder"),
]  # fmt: skip

# ---- saved models, whose weights are read ----------------------------------------------------------------------------

MODELS = {
    "weights-cut": "model='weights-cut' is damaged, model.safetensors (Error while deserializing header .. copy or download it again",
    "weights-text": "model='weights-text' is damaged, model.safetensors (Error while deserializing header .. copy or download it again",
    "weights-foreign": "model='weights-foreign' lacks .. of its weights .. which would be random: copy or download",
    "weights-shapes": "model='weights-shapes' holds weights of other shapes than its config.json tells: take both from",
    "weights-gone": "model.safetensors .. found in directory weights-gone",
    "config-list": "model='config-list' is damaged, config.json holds no object; copy or download it again",
    "config-deep": "model='config-deep' is damaged, config.json .. nested too deep .. Copy or download it again",
    "config-latin": "model='config-latin' is damaged, config.json .. not text in UTF-8",
    "config-empty": "model='config-empty' could not be loaded: name a folder .. `model_type` key",
    "config-nothing": "model='config-nothing' could not be loaded: name a folder .. model type `nothing`",
    "config-router": "model='config-router' is damaged (Validation error for field 'router_type' .. got int",
    "config-width": "model='config-width' is damaged (Validation error for field 'soft_prompt_length' .. got str",
    "processor-gone": "model='processor-gone': its processor could not be loaded .. save one beside the model",
    "template-cut": "model='template-cut': its chat template cannot write a question about an image (Expected an expression",
    "tokenizer-cut": "model='tokenizer-cut': its processor could not be loaded .. save one beside the model",
    "text": "model='text' is a 'llama' model, which takes no images; name one that does",
}
SAVED = ("weights-cut", "weights-foreign", "config-deep", "config-list")
MODEL_ROWS = [
    *((f"ask {name} dog.png what", said) for name, said in MODELS.items()),
    *((line.format(name), MODELS[name]) for name in SAVED for line in (
        "evaluate {} --data records.jsonl --output out", "look {} dog.png what --output out.html",
        "merge {} out", "publish {} --repo user/name --dry-run --output out",
        "preference --config preference_scenes --model {} --output_dir out")),
    *((f"{command} text --data scenes:test,size=2 --output out", MODELS["text"])
      for command in ("robustness", "diagnose", "interpret", "fit-router")),
    *((f"card {name}", MODELS[name]) for name in ("config-deep", "config-list")),
    *((f"serve {name} --port 1", MODELS[name]) for name in ("weights-cut", "config-deep")),
    ("data show records.jsonl --model tokenizer-cut --output out.png", "model='tokenizer-cut' is damaged"),
    ("publish tokenizer-cut --repo user/name --dry-run --output out", "model='tokenizer-cut' is damaged"),
    ("evaluate model --data records.jsonl --task caption --output out", "holds nothing for caption: check the data"),
    ("evaluate model --data records.jsonl --task multiple_choice --output out", "holds nothing for multiple_choice"),
    ("ask model dog.png what --task chat", "task='chat': this model tells no tasks apart; leave task out"),
    ("interpret model --layers 0-99 --data scenes:test,size=4 --output out", "0-99"),
    ("curate --data scenes:test,size=9 --concepts scenes --text tiny:tag_encoder --layer 99 --output out",
     "layer=99: the encoder has the layers 0 to"),
    ("curate --data scenes:test,size=9 --prototypes nowhere --vision tiny:vision --output out",
     "prototypes='nowhere' is no folder: give one with a sub-folder"),
    ("curate --data scenes:test,size=9 --prototypes folder --vision tiny:vision --output out",
     "prototypes='folder' holds no sub-folder with"),
    ("rank-encoders --vision tiny:nothing --text tiny:tag_encoder --data scenes:test,size=9 --samples 8 --batch-size 4 "
     "--output out", "'nothing' is no tiny backbone: use one of vision"),
]  # fmt: skip

# ---- options, cards, taggers, and everything else --------------------------------------------------------------------

TWO = "scenes:test,size=2"
MEASURE = "evaluate model --data scenes:test,size=2 --output out {}"
TAG = "tag records.jsonl --tagger clip --output out.jsonl {}"
CURATE = "curate --data scenes:test,size=9 --output out {}"
OTHER_ROWS = [
    ("nothing", "'nothing' is not known: `poise --help` lists them"),
    ("evalute model", "'evalute' is not known: did you mean 'evaluate'?"),
    *((line.format("many " * 40_000), "QUESTION has 200,000 characters, more than 100,000; cut it")
      for line in ("ask model dog.png '{}'", "look model dog.png '{}' --output out.html")),
    ("ask model dog.png ''", "QUESTION is empty; write what you want to know"),
    ("ask model dog.png what --max-new-tokens 0", "--max-new-tokens is 0; it must be at least 1"),
    ("ask model dog.png what --max-new-tokens many", "--max-new-tokens: invalid int value: 'many'"),
    ("ask model dog.png what --device gpu", "device='gpu' is no device of torch: write cpu, cuda"),
    ("ask model dog.png what --device cuda:77", "device='cuda:77': torch sees .. write cpu"),
    ("ask model dog.png what --tags dog:0.5 --tagger folder", "--tags and --tagger both say what is in the image: give one"),
    ("ask model dog.png what --tagger folder", "tagger='folder' holds no tagger.json: name the folder `model`"),
    ("ask ../a/b/c dog.png what", "model '../a/b/c' is no folder; name the folder of a saved model"),
    ("ask dog.png dog.png what", "model 'dog.png' is no folder; name the folder of a saved model"),
    ("ask folder dog.png what", "model 'folder' is a folder without config.json; name the folder"),
    ("ask nobody/nothing dog.png what", "model='nobody/nothing' could not be loaded: name a folder"),
    ("look model dog.png what --output folder", "--output 'folder' is a folder: name an HTML file"),
    ("look model dog.png what --cells 0 --output out.html", "--cells is 0; it must be at least 1"),
    ("look model dog.png what --severity 9 --output out.html", "--severity is 9; write 1 to 5"),
    ("look model dog.png what --dtype int8 --output out.html", "dtype='int8' is no floating-point format of torch: write"),
    ("evaluate model", "the following arguments are required: --data"),
    (MEASURE.format("--task chat"), "--task: invalid choice: 'chat'"),
    (MEASURE.format("--task grounding --iou 0"), "--iou 0.0 is no share of an area: write numbers above 0"),
    (MEASURE.format("--iou half"), "--iou: invalid float value: 'half'"),
    (MEASURE.format("--batch-size 0"), "batch_size=0 must be 1 or more"),
    (MEASURE.format("--samples 0"), "samples=0 must be 1 or more"),
    (MEASURE.format("--num-beams 0"), "--num-beams is 0; it must be at least 1"),
    (MEASURE.format("--resamples -1"), "--resamples is -1; it must be at least 0"),
    (MEASURE.format("--max-new-tokens 0"), "--max-new-tokens is 0; it must be at least 1"),
    (MEASURE.format("--decoding magic"), "--decoding: invalid choice: 'magic'"),
    (MEASURE.format("--decoding vcd --num-beams 3"), "num_beams=3: decoding 'vcd' is greedy, with one beam"),
    (MEASURE.format("--benchmark scenes"), "--benchmark 'scenes' must be owner/dataset#task"),
    (MEASURE.format("--tagger folder"), "tagger='folder' holds no tagger.json: name the folder"),
    (MEASURE.format("--tagger nowhere"), "nowhere"),
    (f"evaluate model --data {TWO} --output dog.png", "dog.png' is a file: name a folder"),
    ("robustness model --degradations blurr --output out", "degradation='blurr' is no degradation: did you mean 'blur'?"),
    ("robustness model --severities 7 --output out", "severity=7 is not 1, 2, 3, 4 or 5"),
    ("robustness model --resamples -1 --output out", "--resamples is -1; it must be at least 0"),
    ("robustness model --reference nowhere.json --output out", "--reference 'nowhere.json' cannot be read: give the robust"),
    ("robustness model --reference deep.json --output out", "--reference 'deep.json' cannot be read: give the robust"),
    ("robustness model --reference list.json --output out", "--reference 'list.json' is no robustness.json: it holds no"),
    ("robustness model --task grounding --data records.jsonl --output out", "no record of task 'grounding': name another"),
    ("robustness model --output dog.png", "--output 'dog.png' is a file: name a folder"),
    ("diagnose model --severity 6 --output out", "severity=6 is not 1, 2, 3, 4 or 5"),
    ("diagnose model --max-new-tokens 0 --output out", "--max-new-tokens is 0; it must be at least 1"),
    ("diagnose model --calibration nowhere.jsonl --output out", "data='nowhere.jsonl': there is no such file"),
    ("diagnose model --output dog.png", "--output 'dog.png' is a file: name a folder"),
    ("interpret model --samples 0 --output out", "--samples is 0; it must be at least 1"),
    ("interpret model --window 0 --output out", "--window is 0; it must be at least 1"),
    ("interpret model --concepts 0 --output out", "--concepts is 0; it must be at least 1"),
    ("interpret model --layers 9-3 --output out", "--layers holds '9-3'; write windows as FIRST-LAST"),
    ("interpret model --buffers -1 --output out", "buffers=[-1]: give at least one of each, buffers 0 or more"),
    ("interpret model --before ../no/where --output out", "model '../no/where' is no folder; name the folder"),
    ("interpret model --output dog.png", "--output 'dog.png' is a file: name a folder"),
    ("fit-router model --output out", "neither --data nor --image is given: name sound images"),
    (f"fit-router model --data {TWO} --samples 0 --output out", "--samples 0: write 0 or more, and 1 or more"),
    ("fit-router model --image dog.png --output nowhere", "--output 'nowhere' holds no statistics: fit them with --data"),
    (f"fit-router model --data {TWO} --output dog.png", "--output 'dog.png' is a file: name a folder"),
    ("merge folder out", "RUN 'folder' holds neither a finished model nor a checkpoint: name a folder that poise sft"),
    ("merge nowhere out", "RUN 'nowhere' is no folder: name a folder that poise sft wrote"),
    ("merge model folder", "OUT 'folder' exists and is not empty: name a new folder"),
    ("merge model out --base half", "--base: invalid choice: 'half'"),
    ("publish model", "the following arguments are required: --repo"),
    ("publish model --repo 'user name'", "--repo 'user name' is no name of a Hub repository: write user/name"),
    ("publish model --repo a/b/c --dry-run", "--repo 'a/b/c' is no name of a Hub repository: write user/name"),
    ("publish model --repo user/name --max-shard-size big --dry-run", "--max-shard-size 'big' is no size of a file: write"),
    ("publish nowhere --repo user/name --dry-run", "RUN 'nowhere' is no folder: name a run's folder"),
    ("publish folder --repo user/name --dry-run", "RUN 'folder' holds neither a finished model nor a checkpoint: name"),
    ("publish model --repo user/name --decoding", "RUN=model with --decoding=True: give a run, or --decoding"),
    ("publish model --repo user/name --adapter-only --dry-run --output out", "--adapter-only: .. has no checkpoint .. train"),
    ("publish model --repo user/name --dry-run --output folder", "folder='folder' holds something .. name a new or empty"),
    ("publish model --repo user/name --dry-run --output dog.png", "folder='dog.png' is a file: name a folder"),
    ("publish model --repo user/name --dry-run --evaluation nowhere.json", "nowhere.json: No such file .. check the path"),
    ("publish --decoding --repo user/name --dry-run --output folder", "--output 'folder' holds other files: name a new"),
    ("card nowhere", "RUN 'nowhere' is no folder: name a run's folder"),
    ("card model --evaluation nowhere.json", "nowhere.json: No such file or directory; check the path"),
    ("card model --evaluation empty.json", "empty.json: neither scores of `poise evaluate`, nor results"),
    ("card model --evaluation deep.json", "deep.json, field '(all)': nested too deep"),
    ("card model --evaluation dog.png", "dog.png, field '(all)': not text in UTF-8 .. save it in UTF-8"),
    ("card model --evaluation list.json", "list.json[0]: expected the fields condition, metric"),
    ("card model --repo 'user name'", "--repo 'user name' is no name of a Hub repository: write user/name"),
    ("space out --model 'a b'", "--model 'a b' is no folder and no name of a Hub repository: write user/name"),
    ("space folder --model model", "OUT 'folder' holds something that is no Space of poise space: name a new folder"),
    ("space dog.png --model model", "OUT 'dog.png' is a file: name a folder"),
    ("space out --model model --max-new-tokens 0", "--max-new-tokens is 0; it must be at least 1"),
    ("space out --model model --tagger 'a b'", "--tagger 'a b' is no folder and no name of a Hub repository"),
    ("space out --model folder", "--model 'folder' is a folder without config.json: name the folder of a saved model"),
    ("serve ../no/where", "model '../no/where' is no folder; name the folder"),
    ("serve model --port 99999", "--port is 99999; it must lie in 1 to 65535"),
    ("serve model --port http", "--port: invalid int value: 'http'"),
    ("align --config nowhere", "recipe 'nowhere' is not known"),
    ("tag-encoder --config nowhere", "recipe 'nowhere' is not known"),
    ("completion tcsh", "invalid choice: 'tcsh'"),
    ("backbones --steps 0 --out out", "--steps=0 trains nothing: use 1 or more"),
    ("backbones --jobs 0 --out out", "--jobs=0 does nothing: use 1 or more"),
    ("backbones --out dog.png", "--out=dog.png is a file: name a folder"),
    ("rank-encoders --samples 0 --output out", "samples=0 .. CKA compares at least 4 at once, give more"),
    ("rank-encoders --data records.jsonl --output out", "'records.jsonl' holds no record with captions"),
    ("rank-encoders --device tpu9 --output out", "device='tpu9' is no device of torch: write cpu"),
    ("rank-encoders --output dog.png", "--output 'dog.png' is a file: name a folder"),
    ("curate --data nowhere.jsonl --concepts dog --text tiny:tag_encoder", "data='nowhere.jsonl': there is no such file"),
    ("curate --data records.jsonl --concepts dog --text tiny:tag_encoder --output out", "holds no record with captions"),
    (CURATE.format("--concepts nowhere.txt --text tiny:tag_encoder"), "--concepts='nowhere.txt' is no file: give a list"),
    (CURATE.format("--concepts empty.txt --text tiny:tag_encoder"), "--concepts='empty.txt' holds no names: give at least"),
    (CURATE.format("--concepts latin.txt --text tiny:tag_encoder"), "latin.txt, field '(all)': not text in UTF-8"),
    (CURATE.format("--concepts nul.txt --text tiny:tag_encoder"), "--concepts .. the invisible character '\\x00'; remove"),
    (CURATE.format("--concepts scenes --vision tiny:vision"), "--prototypes and --vision belong together"),
    (CURATE.format("--concepts scenes --text tiny:tag_encoder --keep 0"), "--keep 0 must be 1 or more"),
    (CURATE.format("--concepts scenes --text tiny:tag_encoder --keep 9 --capacity 3"), "--capacity 3 is less than --keep 9"),
    (CURATE.format("--concepts scenes --text tiny:tag_encoder --template a"), "--template 'a' lacks {}, the place of the"),
    (CURATE.format("--concepts scenes --text nobody/nothing"), "text='nobody/nothing' could not be loaded: name a folder"),
    (CURATE.format("--concepts scenes --text tiny:tag_encoder --batch-size 0"), "batch_size=0 must be 1 or more"),
    ("curate --data scenes --concepts scenes --text tiny:tag_encoder --output dog.png", "'dog.png' is a file: name a folder"),
    ("tag nowhere.jsonl --tagger clip --output out.jsonl", "data='nowhere.jsonl': there is no such file"),
    ("tag records.jsonl --tagger clip --output out.txt", "--output 'out.txt': the records are JSON lines; name a .jsonl"),
    ("tag records.jsonl --tagger nobody/nothing --output out.jsonl", "tagger='nobody/nothing' could not be loaded: name a"),
    ("tag records.jsonl --tagger folder --output out.jsonl", "tagger='folder' could not be loaded: name a folder"),
    ("tag records.jsonl --tagger config-deep --output out.jsonl", "tagger='config-deep' is damaged, config.json .. nested"),
    ("tag records.jsonl --tagger weights-cut --output out.jsonl", "tagger='weights-cut' is damaged, model.safetensors"),
    ("evaluate model --data records.jsonl --tagger weights-cut --output out", "tagger='weights-cut' is damaged"),
    ("space out --model config-deep", "--model='config-deep' is damaged, config.json .. nested too deep"),
    ("space out --model weights-cut", "--model='weights-cut' is damaged, model.safetensors"),
    ("card weights-cut", "model='weights-cut' is damaged, model.safetensors"),
    (SFT.format("--model.text weights-cut"), "model.text='weights-cut' is damaged, model.safetensors"),
    (SFT.format("--model.vision config-deep"), "model.vision='config-deep' is damaged, config.json .. nested too deep"),
    (SFT.format("--model.tag_encoder config-list"), "model.tag_encoder='config-list' is damaged, config.json holds no"),
    (STAGES["align"].format("--model.vision weights-text"), "model.vision='weights-text' is damaged, model.safetensors"),
    (STAGES["tag-encoder"].format("--model.tag_encoder weights-cut"), "model.tag_encoder='weights-cut' is damaged"),
    ("tag records.jsonl --tagger text --output out.jsonl", "LlamaForCausalLM is no tagger: name a zero-shot classifier"),
    (TAG.format(""), "tagger='clip' is a zero-shot classifier: give the vocabulary that it looks for"),
    (TAG.format("--vocabulary nowhere.txt"), "--vocabulary 'nowhere.txt' is no file: name one with a name a line"),
    (TAG.format("--vocabulary empty.txt"), "--vocabulary 'empty.txt' holds no name: give at least one"),
    (TAG.format("--vocabulary latin.txt"), "latin.txt, field '(all)': not text in UTF-8"),
    (TAG.format("--vocabulary nul.txt"), "--vocabulary .. the invisible character '\\x00'; remove it"),
    (TAG.format("--vocabulary coco --threshold 2"), "threshold=2.0 must lie in [0, 1]"),
    (TAG.format("--vocabulary coco --threshold high"), "--threshold: invalid float value: 'high'"),
    (TAG.format("--vocabulary coco --max-tags 0"), "max_tags=0 must be 1 or more"),
    (TAG.format("--vocabulary coco --batch-size 0"), "--batch-size is 0; it must be at least 1"),
    (TAG.format("--vocabulary coco --calibrate nowhere.jsonl"), "data='nowhere.jsonl': there is no such file"),
    (TAG.format("--vocabulary coco --device tpu9"), "device='tpu9' is no device of torch: write cpu"),
    ("tag records.jsonl --tagger clip --vocabulary coco --output others.jsonl", "others.jsonl.shares' holds tags of a stopped"),
    ("data show records.jsonl --count 0", "--count is 0; it must be at least 1"),
    ("data show records.jsonl --max-length 0", "--max-length is 0; it must be at least 1"),
    ("data show records.jsonl --max-length 3", "max_length=3 leaves no room .. set it to more than 48"),
    ("data show records.jsonl --output out.jpg", "--output 'out.jpg': the sheet is a PNG file; name one"),
    ("data show records.jsonl --output nowhere/out.png", "--output 'nowhere/out.png': there is no folder 'nowhere'; make it"),
    ("data show records.jsonl --model folder", "--model 'folder' holds no processor_config.json: name the folder"),
    ("data show records.jsonl --config nowhere", "recipe 'nowhere' is not known"),
    ("data verify nowhere", "FOLDER 'nowhere' is no folder: name a run, a checkpoint or feature caches"),
    ("data verify folder", "FOLDER 'folder' holds neither a checkpoint nor a shard of a feature cache"),
    ("data verify sealed", "1 of 1 checkpoints and shards in sealed are damaged"),
    ("data publish-scenes --repo 'a b' --dry-run --output out", "--repo 'a b' is no name of a Hub repository: write user"),
    ("data publish-scenes --repo user/name --output out --sizes train=x", "--sizes 'train=x' is no SPLIT=N: write train="),
    ("data publish-scenes --repo user/name --output out --sizes tset=3", "split='tset' is no split of Scenes: did you mean 'test'?"),
    ("data publish-scenes --repo user/name --output out --prior-strength 3", "prior_strength=3.0 is no probability: use"),
    ("data publish-scenes --repo user/name --output out --degraded-size 0", "degraded_size=0 leaves no question: use 1"),
    ("data publish-scenes --repo user/name --dry-run --output folder", "folder='folder' holds something .. name a new folder"),
]  # fmt: skip

ROWS = {
    "images": IMAGE_ROWS, "tags": TAG_ROWS, "records": RECORD_ROWS, "sources": SOURCE_ROWS, "forms": FORM_ROWS,
    "training": TRAINING_ROWS, "models": MODEL_ROWS, "others": OTHER_ROWS,
}  # fmt: skip
TABLE = [(group, *row, *([{}] if len(row) == 2 else [])) for group, rows in ROWS.items() for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, poise_folder):
    """Everything that the rows name."""
    folder = tmp_path_factory.mktemp("bad")
    drawn = Image.frombytes("RGB", (40, 30), random.Random(0).randbytes(3600))
    drawn.save(folder / "dog.png")
    drawn.save(folder / "cut.jpg")
    (folder / "cut.png").write_bytes((folder / "dog.png").read_bytes()[:2000])
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:100])
    Image.new("1", (13000, 13000)).save(folder / "huge.png")
    os.mkfifo(folder / "pipe")
    contents = {
        "empty.png": "", "notes.txt": "some notes", "latin.txt": "café\n".encode("latin-1"), "table.csv": "a,b\n1,2\n",
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "page.pdf": b"%PDF-1.4\n",
        "drawing.svg": '<?xml version="1.0"?><svg width="9" height="9"/>', "page.png": "<!DOCTYPE html><html>404</html>",
        "pointer.png": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "folder/something": "of somebody",
        "records.jsonl": json.dumps(RECORD), "empty.jsonl": "\n", "latin.jsonl": '{"id": "é"}\n'.encode("latin-1"),
        "unanswered.jsonl": json.dumps({**RECORD, "answers": None}),
        "empty.txt": "\n", "nul.txt": f"dog\n{NUL}cat\n", "empty.json": "{}", "list.json": "[1, 2]",
        "deep.json": "[" * 100_000, "evil.p": pickle.dumps([os.system]), "cut.p": pickle.dumps([{"a": 1}])[:-3],
        "others.jsonl.shares/settings.json": '{"data": "others"}',
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    seal(folder / "sealed")
    CLIPConfig().save_pretrained(folder / "clip")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=8)).save_pretrained(folder / "text")
    for name in ("model", *MODELS):
        if name != "text":
            shutil.copytree(poise_folder, folder / name)
            damage(folder / name)
    return folder


def seal(folder):
    """A checkpoint that was sealed, and then changed."""
    from poise.training.atomic_folders import seal

    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"sound")
    seal(folder)
    (folder / "optimizer.pt").write_bytes(b"wrong")


def damage(folder):
    """What the folder's name says."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    shapes = {key: torch.zeros(7) for key in load_file(weights)}
    changes = {"config-router": {"router_type": 3}, "config-width": {"soft_prompt_length": "many"}}
    contents = {
        "weights-cut": (weights, weights.read_bytes()[:5000]), "weights-text": (weights, b"<html>"),
        "config-list": (config, b"[]"), "config-deep": (config, b"[" * 100_000), "config-empty": (config, b"{}"),
        "config-latin": (config, '{"é": 1}'.encode("latin-1")), "config-nothing": (config, b'{"model_type": "nothing"}'),
        "tokenizer-cut": (folder / "tokenizer.json", b"{"),
        "template-cut": (folder / "chat_template.jinja", b"{% for message in %}"),
    }  # fmt: skip
    if folder.name in contents:
        path, content = contents[folder.name]
        path.write_bytes(content)
    elif folder.name in changes:
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes[folder.name]}))
    elif folder.name in ("weights-foreign", "weights-shapes"):
        saved = shapes if folder.name == "weights-shapes" else {"x": torch.zeros(3)}
        save_file(saved, weights, metadata={"format": "pt"})
    elif folder.name in ("weights-gone", "processor-gone"):
        (weights if folder.name == "weights-gone" else folder / "processor_config.json").unlink()


def everything_in(folder):
    paths = [os.path.join(path, name) for path, folders, files in os.walk(folder) for name in (*folders, *files)]
    return {path: (os.lstat(path).st_size, os.lstat(path).st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("group", "words", "said", "files"), TABLE, ids=[f"{n}-{r[0]}" for n, r in enumerate(TABLE)])
def test_it_ends_in_one_line_and_leaves_everything_as_it_was(group, words, said, files, folder, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read before the mistake was found")

    for model_class in (_BaseAutoModelClass, PreTrainedModel) if group != "models" else ():
        monkeypatch.setattr(model_class, "from_pretrained", classmethod(refuse))
    monkeypatch.chdir(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = everything_in(folder)
    words = shlex.split(words)
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    after = everything_in(folder)
    for name in files:
        (folder / name).unlink()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    if code == 1 and group != "models":  # of damaged weights transformers says something, too
        assert len(lines) == 1, lines
    line = lines[-1]
    command = f"poise {words[0]}" if words[0] in COMMANDS else "poise"
    assert code == (2 if f"{command}: error: " in line or f"{command} show: error: " in line else 1)
    assert line.startswith(f"{command}") and len([one for one in lines if one.startswith("poise")]) == 1
    assert not [one for one in lines if "Traceback" in one]
    place = 0
    for part in said.split(" .. "):
        assert part in line[place:], (part, line)
        place = line.index(part, place) + len(part)
    assert after == before


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)], ids=["torch", "python"]
)
def test_the_want_of_memory_is_one_line(allocate, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("poise.model_loading.load_model", lambda *args, **kwargs: allocate())
    assert main(["ask", "model", "dog.png", "what"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("poise ask: out of memory (") and "take smaller batches (--batch-size" in line


def test_the_table_is_long_and_has_every_command():
    assert set(COMMANDS) <= {words.partition(" ")[0] for _, words, _, _ in TABLE}
    assert len(TABLE) == len({(words, str(files)) for _, words, _, files in TABLE}) >= 250
